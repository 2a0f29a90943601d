"""The permutation over arrays is the one over numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.order import Permutation


@given(st.integers(1, 5000), st.integers(0, 2**64), st.integers(0, 9), st.data())
def test_many_at_once_are_one_by_one(size: int, seed: int, epoch: int, data: st.DataObject) -> None:
    order = Permutation(size, seed, "source", epoch)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, min(size, start + 200)))
    assert order.many(start, stop).tolist() == [order[place] for place in range(start, stop)]


def test_outside_is_an_index_error() -> None:
    for start, stop in ((-1, 2), (0, 6), (3, 2)):
        with pytest.raises(IndexError):
            Permutation(5, 1, "source", 0).many(start, stop)
