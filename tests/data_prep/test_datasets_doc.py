"""docs/datasets.md: its examples run, and its numbers are those of the commands."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_dataset import files_of, save_tokenizer

from data_prep.indexing import index
from data_prep.indexing.layout import idx_path
from data_prep.indexing.trace import trace
from data_prep.settings import IndexSettings

TEXT = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The document's two lines, indexed as `d` with a small tokenizer."""
    folder = tmp_path_factory.mktemp("doc")
    lines = [line.strip() for line in TEXT.splitlines() if line.startswith('    {"id"')]
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = save_tokenizer(folder / "tokenizer")
    index(IndexSettings(encoder="tokenizers"), [folder / "text.jsonl"], tokenizer, folder / "d")
    return folder


@pytest.mark.parametrize("place", [0, 1])
def test_the_snippets_read_the_first_document(folder: Path, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", TEXT, re.S)[place]
    if "megatron" in code:
        pytest.importorskip("megatron.core")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code, names)
    tokens = names["tokens"].tolist()
    assert len(tokens) == trace(folder / "d", document=0).tokens
    assert tokens[-1] == 0


def test_the_tables_are_the_files(folder: Path) -> None:
    content = idx_path(folder / "d").read_bytes()
    assert content[:9] == b"MMIDIDX\0\0"
    assert struct.unpack("<QBQQ", content[9:34]) == (1, 8, 2, 3)
    assert len(content) == 34 + 12 * 2 + 8 * 3
    spans = files_of(folder / "d")["spans"].read_bytes()
    magic, documents, runs = struct.unpack("<8sQQ", spans[:24])
    assert (magic, documents, len(spans)) == (b"IPTSPAN1", 2, 24 + 8 * 3 + 9 * runs)
    assert np.frombuffer(spans[24:48], "<i8").tolist() == [0, 7, 9]
    assert np.frombuffer(spans[48 + 4 * runs : 48 + 8 * runs], "<i4").tolist() == [0, -1, 0, -1, 0, -1, -1, 0, -1]
    assert list(spans[48 + 8 * runs :]) == [0, 3, 1, 3, 2, 3, 4, 0, 4]


def test_the_token_stands_where_the_document_says(folder: Path) -> None:
    """' lays' starts 25 characters into the text, which starts at character 120 of the raw document."""
    first = json.loads((folder / "text.jsonl").read_text().splitlines()[0])
    place = first["text"].index(" lays")
    found = trace(folder / "d", place, tokenizer_dir=folder / "tokenizer").token
    assert found is not None
    assert (found.text, found.character, found.exact) == (" ", 120 + place, True)
    assert f"character {120 + place} of bees-7" in TEXT
