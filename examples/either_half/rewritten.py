#!/usr/bin/env python3
"""A dataset of 100 documents is written again at its own prefix, with 100 documents more: what is trained on?

    python examples/either_half/rewritten.py

Megatron keeps its index in a cache, under a name made of the prefix and the settings, so the second start finds the
index of the first dataset.  Our blend holds the hash of the bytes it was planned with.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from sides import megatron, numbered, table, write

from data_prep.blend import plan
from data_prep.errors import UserError
from data_prep.settings import BlendSettings
from megatron_ipt.data.stream import BlendStream

SEQ_LENGTH, SAMPLES = 64, 100
OLD, ADDED = 100, 100


def main() -> None:
    documents = numbered(1, OLD + ADDED, (90, 120), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "domain"
        write(prefix, documents[:OLD])
        megatron([prefix], None, SAMPLES, SEQ_LENGTH, Path(folder) / "cache")
        source = {prefix.name: {"prefix": prefix, "weight": 1.0}}
        plan(BlendSettings(sources=source, seq_length=SEQ_LENGTH), Path(folder) / "blend")

        write(prefix, documents)
        with Warnings() as told:
            stale = megatron([prefix], None, SAMPLES, SEQ_LENGTH, Path(folder) / "cache")
        new = megatron([prefix], None, SAMPLES, SEQ_LENGTH, Path(folder) / "another_cache")
        refusal = start_ours(Path(folder) / "blend" / "blend.json").replace(f"{folder}/", "")
    rows = [
        ("the second start", f"goes on, with {told.count} warnings", f"is refused: `{refusal}`"),
        ("documents in the dataset", len(documents), len(documents)),
        ("documents that its index knows", documents_of(stale, documents), "-"),
        ("the same, after its cache was deleted", documents_of(new, documents), "-"),
    ]
    table(f"Written again at its prefix, {OLD} documents and {ADDED} more", rows)


def start_ours(blend: Path) -> str:
    """What our side says to the data as it now is."""
    try:
        BlendStream(blend)
    except UserError as error:
        return str(error)
    return "nothing"


def documents_of(dataset: Any, documents: list[list[int]]) -> int:
    """How many documents one epoch of it draws a token of."""
    drawn = {token for k in range(len(dataset)) for token in dataset[k]["tokens"].tolist()}
    return sum(not drawn.isdisjoint(document[:-1]) for document in documents)


class Warnings(logging.Handler):
    """Counts what is logged as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1

    def __enter__(self) -> Warnings:
        logging.getLogger("megatron").setLevel(logging.WARNING)
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)


if __name__ == "__main__":
    main()
