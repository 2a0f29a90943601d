"""train/quarantine.jsonl: the batches whose update was not made, back to the documents they are of.

    {"iteration": 7, "reason": "spike", "loss": 9.1, "grad_norm": 40.2, "first_sample": 48, "samples": [
        {"sample": 48, "source": "domain", "epoch": 0, "sequence": 17, "documents": [
            {"document": 912, "id": "d912", "raw": ["d5", "d9"]}, ...]}, ...]}

`document` is its number in the dataset, `id` and `raw` are its row in the dataset's lineage (null and empty where there
is none).  A run that goes on from a checkpoint first removes the lines after it, as metrics.jsonl does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from data_prep.errors import UserError
from data_prep.indexing.lineage import read_rows
from megatron_ipt.data.stream import BlendStream
from megatron_ipt.training.metrics import read_metrics


class Quarantine:
    """Appends to quarantine.jsonl; made on the main rank only."""

    def __init__(self, path: Path, resumed_from: int) -> None:
        self._path = path
        if path.exists():
            kept = [row for row in read_metrics(path) if row["iteration"] <= resumed_from]
            waiting = path.with_suffix(".partial")
            waiting.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in kept))
            waiting.replace(path)

    def add(self, stream: BlendStream, samples: range, **figures: Any) -> None:
        """One line: `figures`, and where each of `samples` comes from."""
        row = {**figures, "first_sample": samples.start, "samples": lineage_of(stream, samples)}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(orjson.dumps(row) + b"\n")


def lineage_of(stream: BlendStream, samples: Iterable[int]) -> list[dict[str, Any]]:
    """For each sample its source, epoch, sequence and documents.  A dataset's lineage is read once."""
    places = {index: stream.blend.locate(index) for index in samples}
    inside = {index: sorted({piece.document for piece in stream.sample(index).pieces}) for index in places}
    known = {}
    for number, source in enumerate(stream.blend.sources):
        wanted = {document for index, place in places.items() if place.source == number for document in inside[index]}
        known[number] = _rows(source.prefix, wanted)
    return [
        {
            "sample": index,
            "source": stream.blend.sources[place.source].name,
            "epoch": place.epoch,
            "sequence": place.sequence,
            "documents": [_document(number, known[place.source].get(number)) for number in inside[index]],
        }
        for index, place in places.items()
    ]


def _rows(prefix: Path, documents: set[int]) -> Mapping[int, Mapping[str, Any]]:
    try:
        return read_rows(prefix, documents)
    except UserError:  # a dataset without lineage, of another's making, still has its numbers
        return {}


def _document(number: int, row: Mapping[str, Any] | None) -> dict[str, Any]:
    raw = [] if row is None else [origin["document_id"] for origin in row["origins"]]
    return {"document": number, "id": None if row is None else row["id"], "raw": raw}
