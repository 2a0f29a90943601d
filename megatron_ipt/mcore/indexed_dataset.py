"""Holds a dataset of ours against Megatron's own reader of it."""

from __future__ import annotations

import megatron_ipt.mcore.quiet  # noqa: F401  # isort: skip

from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset

from data_prep.errors import UserError
from data_prep.indexing.reader import IndexedDatasetReader

_MEND = "write the dataset again with `ipt data index`"

# Documents whose tokens are compared; of more, a sample spread over the dataset.
COMPARED = 10_000


def verify_with_megatron(prefix: Path, compared: int = COMPARED) -> dict[str, Any]:
    """Compares counts, lengths and boundaries as Megatron and as our reader see them, and the tokens of documents.

    Of more than `compared` documents so many are drawn, one from each stretch, the first and the last among them: the
    same ones for the same dataset.  Returns `documents`, `tokens` and `dtype` as Megatron has them, and `compared`.
    Errors: a UserError naming the dataset and the first document that differs.
    """
    # Megatron's arrays are views that die with the dataset: hold it, and copy what is kept.
    theirs, ours = IndexedDataset(str(prefix)), IndexedDatasetReader(Path(prefix))
    lengths = np.array(theirs.sequence_lengths)
    found = {
        "documents": len(theirs.document_indices) - 1,
        "tokens": int(lengths.sum(dtype=np.int64)),
        "dtype": np.dtype(theirs.index.dtype).name,
    }
    expected = {"documents": ours.documents, "tokens": ours.tokens, "dtype": ours.dtype.name}
    if found != expected:
        raise UserError(prefix, f"Megatron reads {found} where we read {expected}", _MEND)
    boundaries = np.array(theirs.document_indices)
    totals = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    wrong = np.flatnonzero(np.diff(totals[boundaries]) != ours.document_lengths())
    if wrong.size or not np.array_equal(boundaries, ours.document_indices):
        place = f"document {wrong[0]}" if wrong.size else "the documents"
        raise UserError(prefix, f"Megatron reads {place} with other bounds", _MEND)
    documents = _drawn(ours.documents, compared)
    for document in documents:
        sequences = [theirs.get(sequence) for sequence in range(boundaries[document], boundaries[document + 1])]
        tokens = np.concatenate(sequences) if sequences else np.empty(0, theirs.index.dtype)
        if not np.array_equal(tokens, ours.document(document)):
            raise UserError(prefix, f"Megatron reads other tokens in document {document}", _MEND)
    return {**found, "compared": len(documents)}


def _drawn(documents: int, count: int) -> list[int]:
    """All of so many documents, or `count` of them (2 or more): the first, the last, and one from each stretch."""
    if documents <= count:
        return list(range(documents))
    bounds = [1 + place * (documents - 2) // max(1, count - 2) for place in range(count - 1)]
    random = Random(documents)
    inner = [random.randrange(start, end) for start, end in pairwise(bounds)]
    return [0, *inner, documents - 1]
