"""The documents of a dataset in the seeded order in which they are packed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_prep.indexing.reader import IndexedDatasetReader
from data_prep.order import Permutation

# Documents that are looked at together.
_CHUNK = 1 << 14


def documents_in_order(
    reader: IndexedDatasetReader,
    seed: int,
    wanted: np.ndarray | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Documents [start, stop) of the order, those `wanted`, some at a time: numbers and lengths [tokens], int64."""
    if not reader.documents:
        return
    order = Permutation(reader.documents, seed, "documents", 0)
    end = reader.documents if stop is None else stop
    for first in range(start, end, _CHUNK):
        numbers = order.many(first, min(first + _CHUNK, end))
        if wanted is not None:
            numbers = numbers[wanted[numbers]]
        yield numbers, reader.lengths_of(numbers)
