"""A rank that hangs or is gone: noticed by all the others, told in one line, and left within a minute.

A collective waits for the slowest rank for as long as the process group's timeout, half an hour.  So a thread of each
rank publishes in torch's store where its loop is, (iteration, phase), and reads where the others are.  When this rank
has not moved for `hang_seconds`, or ten times its slowest step where that is longer, the rank furthest behind is the
cause; when a rank's thread no longer answers, that rank is gone.  Whoever finds one of the two says so and ends its
process at once: there is no way out of a collective.

While any rank is in a phase that may take any time, its first step, a validation, a save, only a rank that no longer
answers is a cause.

Time is counted in ticks of the thread, so that a process that was stopped and goes on finds no time gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Self

from data_prep.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import Store

logger = logging.getLogger(__name__)

TICK = 1.0
"""How often a rank publishes where it is [s]."""
CALM = 3
"""Ticks that a rank stands still before it looks at the others: a run that moves reads nothing."""
RANKS_A_TICK = 64
"""A larger world is looked at less often: each look reads a key a rank."""
GONE_SECONDS = 20.0
"""A thread that does not answer for as long, while its own rank waits as well, belongs to a rank that is gone [s]."""
FREE = 2
"""How many times that, in a phase that may take any time: a save may keep a thread from answering for a while."""
ENDED = -1
"""The last beat of a rank whose loop has ended."""
SLOWEST = 10
"""A step may take this many times what the slowest one took."""


class Phase(IntEnum):
    """Where in a step a rank is, in the order of the loop; a free one may take any time."""

    FREE = 0
    DATA = 1
    FORWARD_BACKWARD = 2
    REDUCTION = 3
    UPDATE = 4
    METRICS = 5


_WORDS = {
    Phase.FREE: "outside of its steps",
    Phase.DATA: "reading its batch",
    Phase.FORWARD_BACKWARD: "forward and backward",
    Phase.REDUCTION: "the reduction of gradients",
    Phase.UPDATE: "the optimizer's step",
    Phase.METRICS: "metrics and the end of the step",
}


class Position(NamedTuple):
    """A rank's place in the loop: `micro_batch` it computes, from 1; `beat` counts the looks of its thread."""

    iteration: int
    phase: int
    micro_batch: int
    beat: int

    @classmethod
    def read(cls, text: bytes) -> Self:
        return cls(*map(int, text.split()))

    def words(self) -> str:
        micro = f" of micro batch {self.micro_batch}" if self.micro_batch else ""
        return f"iteration {self.iteration} ({_WORDS[Phase(self.phase)]}{micro})"


class Judge:
    """What one rank makes of the positions it sees, tick after tick.  Pure."""

    def __init__(self, rank: int, hang_seconds: float, gone_seconds: float = GONE_SECONDS) -> None:
        self._rank, self._hang_seconds, self._gone_seconds = rank, hang_seconds, gone_seconds
        self._quiet: dict[int, float] = {}
        self._silent: dict[int, float] = {}
        self._known: dict[int, Position] = {}
        self.slowest_step = 0.0

    def look(self, seen: Mapping[int, Position], seconds: float) -> tuple[str, str] | None:
        """(which ranks, what they do), if there is cause to leave.  `seconds` passed since the last look."""
        if self._rank not in seen:
            return None
        for rank, position in seen.items():
            before = self._known.get(rank)
            moved = before is None or before[:3] != position[:3]
            answered = before is None or before.beat != position.beat
            self._quiet[rank] = 0.0 if moved else self._quiet[rank] + seconds
            self._silent[rank] = 0.0 if answered else self._silent[rank] + seconds
        self._known = dict(seen)
        free = any(position.phase == Phase.FREE for position in seen.values())
        patience = self._gone_seconds * (FREE if free else 1)
        waited = self._quiet[self._rank]
        gone = [rank for rank in sorted(seen) if self._silent[rank] >= patience and rank != self._rank]
        gone = [rank for rank in gone if seen[rank].beat != ENDED]
        if gone and waited >= patience:
            return _ranks(gone), f"no answer for {self._silent[gone[0]]:.0f} s, last seen in {seen[gone[0]].words()}"
        if free:
            return None
        if waited >= max(self._hang_seconds, SLOWEST * self.slowest_step):
            return self._hang(seen, waited)
        return None

    def _hang(self, seen: Mapping[int, Position], waited: float) -> tuple[str, str]:
        furthest = min(position[:3] for position in seen.values())
        behind = [rank for rank in sorted(seen) if seen[rank][:3] == furthest]
        where = seen[behind[0]].words()
        if len(behind) == len(seen):
            return "all ranks" if len(seen) > 1 else "rank 0", f"no move for {waited:.0f} s out of {where}"
        return _ranks(behind), f"no move for {waited:.0f} s out of {where}, where the others wait for it"


class Watchdog:
    """The thread.  The loop says where it is with `at`; `told` gets the cause before the process ends."""

    def __init__(
        self, store: Store, rank: int, world_size: int, hang_seconds: float | None, told: Callable[[UserError], None]
    ) -> None:
        """`hang_seconds` None: no thread."""
        self._store, self._rank, self._ranks, self._told = store, rank, range(world_size), told
        self._watches = hang_seconds is not None
        self._judge = Judge(rank, hang_seconds or 0.0)
        self._where: tuple[int, Phase, int] = (0, Phase.FREE, 0)
        self._began: float | None = None
        self._first = True
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if self._watches:
            self._publish(0)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._watches:
            return
        self._ended.set()
        self._thread.join(2 * TICK)
        if kind is None:  # a rank that failed alone is gone, and must be found so
            self.free()
            with contextlib.suppress(RuntimeError):  # the store may have gone with the rank that held it
                self._publish(ENDED)

    def at(self, phase: Phase, iteration: int) -> None:
        """The loop of this rank enters `phase` of step `iteration`."""
        now = time.monotonic()
        if phase is Phase.DATA:
            self._began = now
        elif phase is Phase.METRICS and self._began is not None:
            self._judge.slowest_step = max(self._judge.slowest_step, 0.0 if self._first else now - self._began)
            self._first, self._began = False, None
        self._where = (iteration, Phase.FREE if self._first else phase, 0)

    def reduces(self) -> None:
        """The loop of this rank comes to the reduction of gradients, where it waits for the others."""
        if self._where[1] is not Phase.FREE:
            self._where = (self._where[0], Phase.REDUCTION, 0)

    def counted[Batch](self, batches: Sequence[Batch]) -> Iterator[Batch]:
        """The micro batches, each noted when it is taken."""
        for number, batch in enumerate(batches, 1):
            self._where = (*self._where[:2], number)
            yield batch

    def free(self) -> None:
        """The loop of this rank does something that may take any time, until the next `at`."""
        self._where = (self._where[0], Phase.FREE, 0)

    def _watch(self) -> None:
        beat, still, before = 0, 0, self._where
        stride = 1 + len(self._ranks) // RANKS_A_TICK
        while not self._ended.wait(TICK):
            beat += 1
            still = still + 1 if self._where == before else 0
            before = self._where
            try:
                self._publish(beat)
                seen = self._read() if still >= CALM and still % stride == 0 else {}
            except RuntimeError as error:  # the store is gone, and torchrun with it
                logger.debug("the watchdog ends: %s", error)
                return
            cause = self._judge.look(seen, stride * TICK)
            if cause is not None and not self._ended.is_set():
                self._leave(cause)

    def _publish(self, beat: int) -> None:
        iteration, phase, micro_batch = self._where
        self._store.set(f"watch/{self._rank}", f"{iteration} {int(phase)} {micro_batch} {beat}")

    def _read(self) -> dict[int, Position]:
        keys = [f"watch/{rank}" for rank in self._ranks]
        if not self._store.check(keys):
            return {}
        return {rank: Position.read(text) for rank, text in zip(self._ranks, self._store.multi_get(keys), strict=True)}

    def _leave(self, cause: tuple[str, str]) -> None:
        error = UserError(*cause, "the log has the stack of each rank; start again to go on from the newest checkpoint")
        self._told(error)
        faulthandler.dump_traceback()
        os._exit(1)


def of_run(hang_seconds: float | None, told: Callable[[UserError], None]) -> Watchdog:
    """The watchdog of this rank of the process group."""
    from megatron_ipt.mcore import parallel

    rank, world_size = parallel.place()
    return Watchdog(parallel.store(), rank, world_size, hang_seconds, told)


def _ranks(ranks: list[int]) -> str:
    few = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank {few}" if len(ranks) == 1 else f"ranks {few}"
