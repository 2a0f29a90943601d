"""Each command of examples/released_data runs, on the small files there in place of the released ones."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_prep.indexing.reader import IndexedDatasetReader
from data_prep.manifest import read_manifest
from data_prep.readers import read_jsonl
from megatron_ipt.cli.main import app

sys.path.insert(0, str(Path(__file__).parents[1] / "data_prep"))
from tokenizers_for_tests import llama3_like

EXAMPLE = Path(__file__).parents[2] / "examples" / "released_data"
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
"""A command a line.  The first needs the released model; presets have tests of their own."""
SYNTHESIZE, *COMMANDS = "".join(BLOCK.findall((EXAMPLE / "README.md").read_text(encoding="utf-8"))).splitlines()


def test_the_commands_of_the_page_run_on_the_small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(EXAMPLE / "small", tmp_path, dirs_exist_ok=True)
    llama3_like(tmp_path / "tokenizer")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for command in COMMANDS:
        words = [word.replace("quail", "harbour_quiz") for word in shlex.split(command)]
        arguments = [str(path) for word in words for path in (sorted(Path().glob(word)) if "*" in word else [word])]
        told = CliRunner().invoke(app, arguments[1:], catch_exceptions=False)
        assert arguments[0] == "ipt" and told.exit_code == 0, told.output
    for name, rows in (("general", 1), ("medicine", 2), ("finance", 1)):
        manifest = read_manifest(tmp_path / "data" / name)
        assert manifest.documents == rows and manifest.tokenizer.append_eod
    sequences = list(read_jsonl(tmp_path / "collected" / "tuning.jsonl"))
    tuning = read_manifest(tmp_path / "data" / "tuning")
    assert tuning.documents == len(sequences) == 2
    assert not tuning.tokenizer.append_eod and not tuning.tokenizer.prepend_bos and tuning.spans
    assert IndexedDatasetReader(tmp_path / "data" / "tuning").documents == 2


def test_the_page_names_each_of_the_released_things():
    page = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert SYNTHESIZE.startswith("ipt data synthesize") and "--preset paper" in SYNTHESIZE
    for name in ("general", "medicine", "finance"):
        assert f"{name}-instruction-augmented-corpora" in page
    assert "instruction-pretrain/ft-instruction-synthesizer-collection" in page
