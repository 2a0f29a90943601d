"""Damaged and forged datasets, read in every way in a process of their own: no traceback, no segfault."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_dataset import save_tokenizer, training_text, write_rows

from data_prep.indexing import index
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import IndexSettings


def run_worker(folder: Path, examples: int) -> None:
    worker = Path(__file__).with_name("fuzz_worker.py")
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, str(worker), str(folder), str(examples)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset `a`, with spans."""
    folder = tmp_path_factory.mktemp("fuzz")
    tokenizer = save_tokenizer(folder / "tokenizer")
    chains = [
        Chain(str(number), (AugmentedText(f"doc-{number}", "Wer? " * number + "Die.", (Pair("Was?", "Das."),)),))
        for number in range(6)
    ]
    rows = [training_text(chain).to_json() for chain in chains]
    settings = IndexSettings(prepend_bos=True, encoder="tokenizers")
    index(settings, [write_rows(folder / "a.jsonl", rows)], tokenizer, folder / "a")
    return folder


def test_no_file_leads_its_reader_astray(folder: Path) -> None:
    run_worker(folder, 100)


@pytest.mark.long
def test_no_file_leads_its_reader_astray_at_length(folder: Path) -> None:
    run_worker(folder, 1500)
