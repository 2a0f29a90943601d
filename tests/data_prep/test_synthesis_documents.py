"""The documents that synthesis leaves beside its chains: what `render` reads, whatever the corpus was read from."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.checks import check
from data_prep.readers import read_documents, read_jsonl
from data_prep.settings import CheckSettings, RenderSettings, SynthesizeSettings
from data_prep.synthesis import synthesize
from data_prep.templates import render

TEXT = "Kiln {0}\n\nA kiln is an oven for bricks; therefore kiln {0} burned in {1}. It is defined as a dry oven."


def row(number: int, **more: Any) -> str:
    return json.dumps({"content": TEXT.format(number, 1800 + number), "quality": number, **more})


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """A folder, and a file under another name: rows with and without ids, and some that are no documents."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.jsonl").write_text("\n".join([row(0, id="a"), "{", row(1), '{"content": 3}', row(2, id="a")]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(row(3, id=7, metadata={"year": 1803}).encode()))
    (tmp_path / "pages.jsonl").write_text("\n".join(row(number) for number in range(4, 12)))
    return [str(folder), f"web={tmp_path / 'pages.jsonl'}"]


@pytest.mark.parametrize("documents", [None, 5])
def test_what_was_read_becomes_training_text(tmp_path: Path, inputs: list[str], documents: int | None):
    settings = SynthesizeSettings(engine="rules", text_key="content", documents=documents, shard_documents=4)
    out = tmp_path / "chains.jsonl"
    made = synthesize(settings, inputs, None, out)
    assert made is not None and made["dropped"] == {"not_json": 1, "duplicate_id": 1, "text_not_a_string": 1}
    check(CheckSettings(), out, tmp_path / "checked.jsonl")
    left = [
        path for path in (f"{out}.leftover.jsonl", tmp_path / "checked.jsonl.leftover.jsonl") if Path(path).exists()
    ]
    told = render(RenderSettings(), tmp_path / "checked.jsonl", left, f"{out}.documents.jsonl.zst", tmp_path / "text")
    assert told["documents"] == 11 and made["documents"] == (documents or 11)
    assert told["characters"] == sum(len(TEXT.format(n, 1800 + n)) for n in range(12) if n != 2)
    trained = [*read_jsonl(tmp_path / "text/augmented.jsonl"), *read_jsonl(tmp_path / "text/raw.jsonl")]
    for number in range(12):
        assert sum(TEXT.format(number, 1800 + number) in each["text"] for each in trained) == (number != 2)


def test_they_are_as_they_were_read(tmp_path: Path, inputs: list[str]):
    out = tmp_path / "chains.jsonl"
    synthesize(SynthesizeSettings(engine="rules", text_key="content"), inputs, None, out)
    found = list(read_documents(f"{out}.documents.jsonl.zst"))
    assert [document.text for document in found] == [TEXT.format(n, 1800 + n) for n in range(12) if n != 2]
    assert [document.source for document in found[:3]] == [""] * 3 and {each.source for each in found[3:]} == {"web"}
    assert found[0].id == "a" and found[2].id == "7" and found[2].metadata == {"quality": 3, "year": 1803}
