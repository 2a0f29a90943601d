"""Shares, schedule and order: exact, deterministic, and never off by a sample."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.blend.schedule import Draw, Schedule, lay_out_period
from data_prep.blend.weights import integer_shares
from data_prep.order import Permutation

WEIGHTS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12)
SHARES = st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any)


@given(WEIGHTS, st.integers(1, 2000))
def test_shares_sum_to_the_period_and_are_off_by_less_than_one(weights: list[float], period: int) -> None:
    shares = integer_shares(weights, period)
    total = sum(map(Fraction, weights))
    assert sum(shares) == period
    for weight, share in zip(weights, shares, strict=True):
        assert abs(share - Fraction(weight) * period / total) < 1


def test_shares_do_not_depend_on_the_scale_and_ties_go_first() -> None:
    assert integer_shares([0.75, 0.25], 8) == integer_shares([75, 25], 8) == [6, 2]
    assert integer_shares([1, 1, 1], 65_536) == [21_846, 21_845, 21_845]
    assert integer_shares([1, 0, 1, 1], 65_536) == [21_846, 0, 21_845, 21_845]
    for wrong in ([], [0.0, 0.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match="at least 0"):
            integer_shares(wrong, 10)


@settings(deadline=None)
@given(SHARES)
def test_no_prefix_is_off_by_a_sample(shares: list[int]) -> None:
    table, period = lay_out_period(shares), sum(shares)
    for source, share in enumerate(shares):
        drawn = np.cumsum(table == source)
        # In whole numbers: |drawn - t * share / period| < 1.
        assert np.all(np.abs(drawn * period - np.arange(1, period + 1) * share) < period)
        assert drawn[-1] == share


def test_a_full_period_of_uneven_shares_is_within_one_sample() -> None:
    shares = integer_shares([0.61, 0.2, 0.1, 0.05, 0.03, 0.009, 0.001], 65_536)
    table = lay_out_period(shares)
    steps = np.arange(1, 65_537)
    for source, share in enumerate(shares):
        assert np.abs(np.cumsum(table == source) * 65_536 - steps * share).max() < 65_536


@settings(deadline=None)
@given(SHARES, st.data())
def test_ordinals_count_each_source_over_all_phases(shares: list[int], data: st.DataObject) -> None:
    schedule = Schedule(len(shares))
    first = 0
    for phase in range(3):
        rotated = shares[phase % len(shares) :] + shares[: phase % len(shares)]
        schedule.append(first, rotated)
        first += data.draw(st.integers(1, 150))
    drawn = [0] * len(shares)
    for sample in range(first + 50):
        assert schedule.counts(sample) == drawn
        source, ordinal = schedule.draw(sample)
        assert ordinal == drawn[source]
        drawn[source] += 1


def test_a_new_phase_changes_nothing_before_it() -> None:
    schedule = Schedule(2)
    schedule.append(0, [1, 1])
    before = [schedule.draw(sample) for sample in range(200)]
    schedule.append(200, [3, 2])
    assert [schedule.draw(sample) for sample in range(200)] == before
    assert schedule.counts(300) == [160, 140]


def test_a_sample_far_away_costs_no_more() -> None:
    schedule = Schedule(2)
    schedule.append(0, [3, 1])
    assert schedule.counts(10**12) == [75 * 10**10, 25 * 10**10]
    assert schedule.draw(10**12) == Draw(0, 75 * 10**10)


@pytest.mark.parametrize(("first", "shares"), [(0, [1, 1]), (100, [1]), (50, [1, 1])])
def test_phases_are_append_only(first: int, shares: list[int]) -> None:
    schedule = Schedule(2)
    schedule.append(0, [1, 1])
    schedule.append(100, [2, 1])
    with pytest.raises(ValueError, match="a phase of"):
        schedule.append(first, shares)
    with pytest.raises(IndexError):
        schedule.draw(-1)


@settings(deadline=None)
@given(st.integers(1, 700), st.integers(0, 2**64), st.integers(0, 50))
def test_order_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    order = Permutation(size, seed, "wiki", epoch)
    assert sorted(order[index] for index in range(size)) == list(range(size))


@given(st.integers(1, 2**45), st.data())
def test_order_of_a_large_source_stays_inside_and_is_one_to_one(size: int, data: st.DataObject) -> None:
    order = Permutation(size, 1, "wiki", 0)
    indices = data.draw(st.lists(st.integers(0, size - 1), unique=True, max_size=20))
    images = [order[index] for index in indices]
    assert len(set(images)) == len(images)
    assert all(0 <= image < size for image in images)
    with pytest.raises(IndexError):
        order[size]


def test_order_differs_by_seed_source_and_epoch_and_never_changes() -> None:
    orders = [Permutation(1000, *key) for key in ((1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1))]
    assert len({tuple(order[index] for index in range(1000)) for order in orders}) == 4
    # Pinned: another value here would silently reorder every run that is resumed.
    assert [orders[0][index] for index in range(8)] == [744, 355, 166, 87, 899, 76, 444, 207]


def test_order_looks_random() -> None:
    """Neighbours land as far apart as in a random permutation (mean |difference| = n / 3)."""
    order = Permutation(10_000, 1234, "wiki", 3)
    images = np.array([order[index] for index in range(10_000)])
    assert abs(np.abs(np.diff(images)).mean() / 10_000 - 1 / 3) < 0.01
    assert abs(np.corrcoef(images, np.arange(10_000))[0, 1]) < 0.04
    assert np.abs(np.bincount(images[:1000] * 10 // 10_000, minlength=10) - 100).max() < 40
