"""The lines of quarantine.jsonl: back to raw documents, and gone where a run goes on from before them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_prep.blend import plan
from data_prep.indexing import lineage
from data_prep.indexing.lineage import SCHEMA, LineageWriter
from data_prep.settings import BlendSettings
from megatron_ipt.data.stream import BlendStream
from megatron_ipt.training.quarantine import Quarantine


def blend_with_lineage(folder: Path, write_dataset: Any) -> BlendStream:
    """Two sources; documents of the one are of raw texts d<number> and e<number>, of the other nothing is known."""
    for name, first in (("known", 1), ("unknown", 101)):
        write_dataset(folder / name, [[*range(first, first + 29), 0]] * 12)
    origins = [
        [
            {"document_id": f"{letter}{number}", "source": "s", "start": 0, "end": 9, "checks": [], "at": 0}
            for letter in "de"
        ]
        for number in range(12)
    ]
    columns = {
        "id": [f"t{number}" for number in range(12)],
        "origins": origins,
        "template": [""] * 12,
        "seed": [1] * 12,
        "source_file": ["f"] * 12,
        "first_token": [30 * number for number in range(12)],
        "tokens": [30] * 12,
        "text_bytes": [120] * 12,
    }
    with LineageWriter(folder / "known") as writer:
        writer.add(pa.table(columns, schema=SCHEMA))
        writer.finish()
        writer.commit()
    sources = {name: {"prefix": folder / name, "weight": 1} for name in ("known", "unknown")}
    settings = {"sources": sources, "seq_length": 16, "train_samples": 30, "refuse_epochs": 100}
    plan(BlendSettings.model_validate(settings), folder)
    return BlendStream(folder / "blend.json")


def test_a_batch_leads_back_to_raw_documents_where_they_are_known(
    tmp_path: Path, write_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "ROW_GROUP", 5)
    stream = blend_with_lineage(tmp_path, write_dataset)
    path = tmp_path / "train" / "quarantine.jsonl"
    Quarantine(path, 0).add(stream, range(4, 12), iteration=2, reason="spike", loss=9.0, grad_norm=3.0)
    (row,) = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert (row["iteration"], row["reason"], row["first_sample"]) == (2, "spike", 4)
    assert [sample["sample"] for sample in row["samples"]] == list(range(4, 12))
    assert {sample["source"] for sample in row["samples"]} == {"known", "unknown"}
    for sample in row["samples"]:
        inside = sorted({piece.document for piece in stream.sample(sample["sample"]).pieces})
        assert [found["document"] for found in sample["documents"]] == inside
        for found in sample["documents"]:
            number = found["document"]
            known = {"id": f"t{number}", "raw": [f"d{number}", f"e{number}"]}
            assert found == {"document": number, **(known if sample["source"] == "known" else {"id": None, "raw": []})}


def test_lines_after_the_place_a_run_goes_on_from_are_removed(tmp_path: Path, write_dataset: Any) -> None:
    stream = blend_with_lineage(tmp_path, write_dataset)
    path = tmp_path / "quarantine.jsonl"
    for iteration in (2, 5, 7):
        Quarantine(path, 9).add(stream, range(0), iteration=iteration)
    Quarantine(path, 5)
    assert [json.loads(line)["iteration"] for line in path.read_text(encoding="utf-8").splitlines()] == [2, 5]
