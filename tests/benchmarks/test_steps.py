"""Two runs that take their steps in turn, and what is measured of each."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import steps
from steps import Baton, Steps


def test_two_runs_of_two_ranks_take_each_step_one_after_the_other(tmp_path: Path) -> None:
    Baton.make(tmp_path / "baton", ranks=2)
    told: list[tuple[int, int, str]] = []
    lock = threading.Lock()

    def one(side: int, rank: int) -> None:
        noted = Steps(Baton(tmp_path / "baton", side, rank, 2))
        for step in range(4):
            noted.begin()
            with lock:
                told.append((step, side, "begins"))
            time.sleep(0.003 * (rank + 1))
            with lock:
                told.append((step, side, "ends"))
        noted.end()
        assert len(noted.periods_ms) == len(noted.processor_ms) == 3

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(one, side, rank) for side in (0, 1) for rank in (0, 1)]
        for run in runs:
            run.result(timeout=20)
    blocks = [told[start : start + 4] for start in range(0, len(told), 4)]
    expected = [(step, side) for step in range(4) for side in (0, 1)]
    assert [block[0][:2] for block in blocks] == expected
    assert all(len({entry[:2] for entry in block}) == 1 for block in blocks)


def test_what_a_step_waits_for_its_turn_is_not_of_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(steps, "_clocks", lambda: (now[0], 2 * now[0]))
    monkeypatch.setattr(Baton, "wait", lambda *_: now.__setitem__(0, now[0] + 60))
    Baton.make(tmp_path / "baton", ranks=1)
    noted = Steps(Baton(tmp_path / "baton", 0, 0, 1))
    for computed in (1.0, 3.0, 9.0):
        noted.begin()
        now[0] += computed
    assert noted.periods_ms == [1000, 3000] and noted.processor_ms == [2000, 6000]


def test_a_run_whose_other_side_failed_ends(tmp_path: Path) -> None:
    Baton.make(tmp_path / "baton", ranks=1)
    waiting = Steps(Baton(tmp_path / "baton", 1, 0, 1))
    Baton.drop(tmp_path / "baton")
    with pytest.raises(SystemExit, match="the other side has ended"):
        waiting.begin()
