"""Arrays of several texts in one array, with the bounds between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Ragged(NamedTuple):
    """Arrays of several texts in one: text i is `values[bounds[i]:bounds[i + 1]]`, bounds int64 [texts + 1]."""

    values: np.ndarray
    bounds: np.ndarray

    def lengths(self) -> np.ndarray:
        """Length of each, int64 [texts]."""
        return np.diff(self.bounds)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        return self.values[self.bounds[index] : self.bounds[index + 1]]


def ragged(arrays: Sequence[np.ndarray]) -> Ragged:
    """Several arrays as one."""
    bounds = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([array.size for array in arrays], out=bounds[1:])
    return Ragged(np.concatenate(arrays) if arrays else np.empty(0, np.uint32), bounds)
