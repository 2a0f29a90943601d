"""A period that is laid out as it is asked for is the period laid out at once, whoever asks and in which order."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_prep.blend import schedule
from data_prep.blend.schedule import Schedule, lay_out_period


@pytest.fixture
def _threads_take_turns_all_the_time() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_threads_take_turns_all_the_time")
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
    with ThreadPoolExecutor(4) as pool:  # each asks for all of it, so all ask at once for what is not laid out yet
        all_draws = [
            pool.submit(lambda: [tuple(wanted.draw(number)) for number in range(len(expected))]) for _ in "1234"
        ]
    assert all(draws.result() == expected for draws in all_draws)
    fresh = Schedule(len(shares))
    fresh.append(0, shares)
    assert {number: tuple(fresh.draw(number)) for number in order} == dict(enumerate(expected))
    half = len(table) // 2
    fresh = Schedule(len(shares))
    fresh.append(0, shares)
    assert fresh.counts(half) == [[source for source, _ in expected[:half]].count(s) for s in range(len(shares))]
