"""Ending a run early, between two steps and on all ranks at once: by a stop file, or by SIGTERM.

    stop file   rank 0 looks for it after each step; for batch scripts and for hands
    SIGTERM     may reach any rank; torchrun hands its own to all workers of its machine

A rank that acts on what it alone knows leaves the others waiting in a collective, so each step ends with one
reduction over all ranks: what any of them knows, all know after the same step.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import FrameType

from megatron_ipt.mcore import parallel

logger = logging.getLogger(__name__)


class Stop(IntEnum):
    """Why a run ends before its train_iters.  The largest of all ranks counts: SIGTERM before a stop file."""

    NO = 0
    STOP_FILE = 1
    SIGTERM = 2


@contextmanager
def watched(stop_file: Path | None, *, is_main: bool) -> Iterator[Callable[[], Stop]]:
    """Within the block SIGTERM is noted, not obeyed; the function it gives says what to do.  All ranks call that.

    After a SIGTERM the block leaves it ignored: torchrun sends it again to whoever ends later than the first.
    """
    noted: list[int] = []
    if is_main and stop_file is not None and stop_file.exists():
        told = "%s is there already: the run ends after its first step; remove it if it is an old one"
        logger.warning(told, stop_file)

    def note(number: int, _: FrameType | None) -> None:
        noted.append(number)

    def agree() -> Stop:
        mine = Stop.SIGTERM if noted else Stop.NO
        if mine is Stop.NO and is_main and stop_file is not None and stop_file.exists():
            mine = Stop.STOP_FILE
        return Stop(int(parallel.largest_over_ranks(mine)))

    before = signal.signal(signal.SIGTERM, note)
    signal.siginterrupt(signal.SIGTERM, False)  # a write that is under way on a network file system goes on
    try:
        yield agree
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if noted else before or signal.SIG_DFL)
