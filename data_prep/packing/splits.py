"""Which side of a split a document is on, by the raw documents it was made of.

A raw document is of the validation side where the hash of (seed, id) says so; every augmented copy of it follows, in
whatever dataset it is.  A training text of raw documents of both sides is on neither, since it would show one side
what belongs to the other.
"""

from __future__ import annotations

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
    # Imported here: a trainer takes tables from this package without pyarrow.
    import pyarrow.compute as pc

    from data_prep.indexing.lineage import lineage_groups

    found = [np.empty(0, np.uint8)]
    for group in lineage_groups(prefix):
        origins = group["origins"].combine_chunks()
        ids = pc.struct_field(origins.flatten(), "document_id")
        sides = np.fromiter((is_validation(name, split) for name in ids.to_pylist()), np.int64, len(ids))
        counts = pc.list_value_length(origins).to_numpy(zero_copy_only=False)
        ones = np.add.reduceat(np.append(sides, 0), np.cumsum(counts) - counts) * (counts > 0)
        found.append(np.where(ones == 0, 0, np.where(ones == counts, 1, MIXED)).astype(np.uint8))
    return np.concatenate(found)
