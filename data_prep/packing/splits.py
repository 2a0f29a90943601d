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
from pydantic import BaseModel, ConfigDict, Field

Side = Literal["train", "validation"]
SIDES: tuple[Side, ...] = ("train", "validation")
MIXED = len(SIDES)


class Split(BaseModel):
    """A part of the raw documents that is not trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    validation: float = Field(gt=0, lt=1, description="part of the raw documents, drawn by their ids")
    seed: int = Field(1234, description="seed of the draw; equal seeds give equal sides in every dataset")

    def is_validation(self, document_id: str) -> bool:
        """Whether a raw document is on the validation side."""
        return xxhash.xxh3_64_intdigest(f"{self.seed}\x1f{document_id}".encode()) < self.validation * 2.0**64


def sides_of(prefix: Path, split: Split) -> np.ndarray:
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
        sides = np.fromiter(map(split.is_validation, ids.to_pylist()), np.int64, len(ids))
        counts = pc.list_value_length(origins).to_numpy(zero_copy_only=False)
        ones = np.add.reduceat(np.append(sides, 0), np.cumsum(counts) - counts) * (counts > 0)
        found.append(np.where(ones == 0, 0, np.where(ones == counts, 1, MIXED)).astype(np.uint8))
    return np.concatenate(found)
