"""A period that is laid out as it is asked for is the period laid out at once, whoever asks and in which order."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_prep.blend import schedule
from data_prep.blend.schedule import Schedule, lay_out_period


@pytest.mark.parametrize("seed", range(5))
def test_draws_of_several_threads_are_those_of_a_plain_count(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_CHUNK", 16)
    drawn = random.Random(seed)
    shares = [drawn.choice([0, 1, 7, 300]) for _ in range(4)] + [5]
    table = lay_out_period(shares).tolist()
    expected, seen = [], [0] * len(shares)
    for number in range(2 * len(table)):
        source = table[number % len(table)]
        expected.append((source, seen[source]))
        seen[source] += 1
    wanted = Schedule(len(shares))
    wanted.append(0, shares)
    order = drawn.sample(range(len(expected)), len(expected))
    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(order, pool.map(wanted.draw, order), strict=True))
    assert [tuple(found[number]) for number in range(len(expected))] == expected
    half = len(table) // 2
    fresh = Schedule(len(shares))
    fresh.append(0, shares)
    assert fresh.counts(half) == [[source for source, _ in expected[:half]].count(s) for s in range(len(shares))]
