"""Which side of a split a document is on, by the raw documents it was made of.

A raw document is of the validation side where the hash of (seed, id) says so; every augmented copy of it follows, in
whatever dataset it is.  A training text of raw documents of both sides is on neither, since it would show one side
what belongs to the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash

from data_prep.settings import SplitSettings

Side = Literal["train", "validation"]
SIDES: tuple[Side, ...] = ("train", "validation")
MIXED = len(SIDES)


def is_validation(document_id: str, split: SplitSettings) -> bool:
    """Whether a raw document is on the validation side."""
    drawn = xxhash.xxh3_64_intdigest(f"{split.seed}\x1f{document_id}".encode())
    return drawn < split.validation * 2.0**64


def sides_of(prefix: Path, split: SplitSettings) -> np.ndarray:
    """The side of each document of a dataset: its place in SIDES, or MIXED; uint8 [documents].

    Errors: a UserError naming a lineage table that is missing or damaged.
    """
    found = [np.empty(0, np.uint8)]
    return np.concatenate(found + [sides for sides, _ in _sides_and_texts(prefix, split)])


def count_texts(prefix: Path, split: SplitSettings, side: Side) -> int:
    """Raw texts that stand in the documents of one side.  Errors: as `sides_of`."""
    wanted = SIDES.index(side)
    return sum(int(texts[sides == wanted].sum()) for sides, texts in _sides_and_texts(prefix, split))


def _sides_and_texts(prefix: Path, split: SplitSettings) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Side of each document and number of the raw texts that stand in it, some documents at a time."""
    # Imported here: a trainer takes tables from this package without pyarrow.
    import pyarrow.compute as pc

    from data_prep.indexing.lineage import lineage_groups

    for group in lineage_groups(prefix):
        origins = group["origins"].combine_chunks()
        ids = pc.struct_field(origins.flatten(), "document_id")
        sides = np.fromiter((is_validation(name, split) for name in ids.to_pylist()), np.int64, len(ids))
        # A closed book names the text it is about, and does not hold it.
        shown = pc.struct_field(origins.flatten(), "at").to_numpy() >= 0
        counts = pc.list_value_length(origins).to_numpy(zero_copy_only=False)
        ones, texts = (_sums(values, counts) for values in (sides, shown))
        yield np.where(ones == 0, 0, np.where(ones == counts, 1, MIXED)).astype(np.uint8), texts


def _sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The sum of each `counts` values that follow each other, int64; 0 where there are none."""
    starts = np.cumsum(counts) - counts
    sums: np.ndarray = np.add.reduceat(np.append(values.astype(np.int64), 0), starts) * (counts > 0)
    return sums
