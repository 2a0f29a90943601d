"""How long each step of a run lasts, and two runs that take their steps in turn.

On a shared machine the same code is now a third quicker, now slower, for seconds on end.  So where two runs fit into
memory together they go step by step: while one computes, the other waits for it, and a step is compared with the step
right beside it.  What a run does between two steps (logging, saving, fetching data) lies within the step before.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from typing import Final

import numpy as np

PATIENCE: Final = 300.0
"""Seconds that a rank waits for the other run before it gives up."""
DONE: Final = 1 << 40
GONE: Final = -1


class Baton:
    """Whose step it is: how many steps each rank of two runs has ended, in a file that all of them map."""

    def __init__(self, path: Path, side: int, rank: int, ranks: int) -> None:
        with path.open("r+b") as stream:
            self._cells = np.frombuffer(mmap.mmap(stream.fileno(), 16 * ranks), "<i8").reshape(2, ranks)
        self._side, self._rank = side, rank

    @staticmethod
    def make(path: Path, ranks: int) -> None:
        """The file for two runs of `ranks` each."""
        path.write_bytes(bytes(16 * ranks))

    @staticmethod
    def drop(path: Path) -> None:
        """Both runs end when they next look: one of them has failed."""
        with path.open("r+b") as file:  # what is cut off, be it for a moment, is a bus error to who has it mapped
            file.write(np.full(path.stat().st_size // 8, GONE, "<i8").tobytes())

    def wait(self, step: int) -> None:
        """Until the other run has ended all steps before this one; of two equal steps side 0 has the first.

        Raises:
            SystemExit: the other run is gone, or keeps silent.
        """
        self._cells[self._side, self._rank] = step
        wanted, last = step + self._side, time.monotonic() + PATIENCE
        while not (there := self._cells[1 - self._side] >= wanted).all():
            if (self._cells[1 - self._side][~there] == GONE).any() or time.monotonic() > last:
                raise SystemExit("the other side has ended")
            time.sleep(2e-4)

    def leave(self) -> None:
        """This rank takes no more steps: the other run need not wait for it."""
        self._cells[self._side, self._rank] = DONE


class Steps:
    """Seconds and processor seconds of each step of this rank; call `begin` where one begins.

    A step lasts until the next begins, less what it then waits for its turn; the last is not measured.
    """

    def __init__(self, baton: Baton | None = None) -> None:
        self._baton = baton
        self._began: tuple[float, float] | None = None
        self.periods_ms: list[float] = []
        self.processor_ms: list[float] = []

    def begin(self) -> None:
        now = _clocks()
        if self._began is not None:
            self.periods_ms.append(1e3 * (now[0] - self._began[0]))
            self.processor_ms.append(1e3 * (now[1] - self._began[1]))
        if self._baton is not None:
            self._baton.wait(len(self.periods_ms))
        self._began = _clocks()

    def end(self) -> None:
        if self._baton is not None:
            self._baton.leave()


def of_this_rank(baton: str) -> Steps:
    """`baton`: its file and which side this is, as FILE:0, or an empty string where a run goes alone."""
    if not baton:
        return Steps()
    path, _, side = baton.rpartition(":")
    return Steps(Baton(Path(path), int(side), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])))


def _clocks() -> tuple[float, float]:
    """Of the wall, and of all threads of this process."""
    return time.perf_counter(), time.process_time()
