"""Holds a dataset of ours against Megatron's own reader of it."""

from __future__ import annotations

import megatron_ipt.mcore.quiet  # noqa: F401  # isort: skip

from pathlib import Path
from typing import Any

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset

from data_prep.errors import UserError
from data_prep.indexing.reader import IndexedDatasetReader

_MEND = "write the dataset again with `ipt data index`"


def verify_with_megatron(prefix: Path) -> dict[str, Any]:
    """Compares every document's tokens, length and boundaries as Megatron and as our reader see them.

    Returns `documents`, `tokens` and `dtype` as Megatron has them.  Errors: a UserError naming the
    dataset and the first document that differs.
    """
    # Megatron's arrays are views that die with the dataset: hold it, and copy what is kept.
    theirs, ours = IndexedDataset(str(prefix)), IndexedDatasetReader(Path(prefix))
    boundaries = np.array(theirs.document_indices)
    lengths = np.array(theirs.sequence_lengths)
    found = {
        "documents": len(boundaries) - 1,
        "tokens": int(lengths.sum(dtype=np.int64)),
        "dtype": np.dtype(theirs.index.dtype).name,
    }
    expected = {"documents": ours.documents, "tokens": ours.tokens, "dtype": ours.dtype.name}
    if found != expected:
        raise UserError(prefix, f"Megatron reads {found} where we read {expected}", _MEND)
    for document, (first, after) in enumerate(zip(boundaries[:-1].tolist(), boundaries[1:].tolist(), strict=True)):
        sequences = [theirs.get(sequence) for sequence in range(first, after)]
        tokens = np.concatenate(sequences) if sequences else np.empty(0, theirs.index.dtype)
        if not np.array_equal(tokens, ours.document(document)):
            raise UserError(prefix, f"Megatron reads other tokens in document {document}", _MEND)
    return found
