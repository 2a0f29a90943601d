"""Which source gives sample i, and the how-manieth of that source it is: O(1), for any i.

A phase repeats one period of D samples in which source s has n_s places.  The period is laid out
earliest deadline first: the j-th sample of source s may stand no sooner than floor(j*D/n_s) and no
later than ceil((j+1)*D/n_s) - 1, and of those that may stand, the one most urgent does.  Such a
layout always exists and keeps every prefix of t samples within one of t*n_s/D (Tijdeman 1980, the
chairman assignment problem; Steiner and Yeomans 1993).  Megatron's greedy rule strays up to 1.93.

Phases are append-only: each starts at a sample and takes up every source where the one before left it.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Draw(NamedTuple):
    """Sample i is sample number `ordinal`, from 0, of source `source`."""

    source: int
    ordinal: int


def lay_out_period(shares: Sequence[int]) -> np.ndarray:
    """The source of each place of a period, int32 [sum(shares)]; a share may be 0.

    What may stand where is known beforehand, so each unit is one number (deadline, then source) and only its turn is
    found place by place.
    """
    period, sources = sum(shares), len(shares)
    given = [(source, share, np.arange(share, dtype=np.int64)) for source, share in enumerate(shares) if share]
    released = np.concatenate([unit * period // share for _, share, unit in given])
    urgency = np.concatenate(
        [(-(-(unit + 1) * period // share) - 1) * sources + source for source, share, unit in given]
    )
    waiting = urgency[np.argsort(released, kind="stable")].tolist()
    ends = np.cumsum(np.bincount(released, minlength=period)).tolist()
    ready: list[int] = []
    chosen, start = [], 0
    for end in ends:
        for unit in waiting[start:end]:
            heapq.heappush(ready, unit)
        start = end
        chosen.append(heapq.heappop(ready))
    return (np.array(chosen, np.int64) % sources).astype(np.int32)


class Phase:
    """One set of shares from `first_sample` on; `before` [sources] counts what earlier phases drew."""

    def __init__(self, first_sample: int, shares: Sequence[int], before: Sequence[int]) -> None:
        self.first_sample, self.shares, self._before = first_sample, tuple(shares), tuple(before)
        self._table = lay_out_period(shares)
        self._ordinals = np.empty(len(self._table), np.int32)
        for source, share in enumerate(shares):
            self._ordinals[self._table == source] = np.arange(share)

    @property
    def period(self) -> int:
        return len(self._table)

    def draw(self, sample: int) -> Draw:
        """The draw of a sample at or after `first_sample`."""
        periods, place = divmod(sample - self.first_sample, self.period)
        source = int(self._table[place])
        ordinal = self._before[source] + periods * self.shares[source] + int(self._ordinals[place])
        return Draw(source, ordinal)

    def sources(self, start: int, stop: int) -> np.ndarray:
        """The source of each of the samples [start, stop), all in this phase, int32 [stop - start]."""
        return self._table[np.arange(start - self.first_sample, stop - self.first_sample) % self.period]

    def counts(self, samples: int) -> list[int]:
        """Samples of each source among the first `samples` of the run, which end in this phase."""
        periods, place = divmod(samples - self.first_sample, self.period)
        rest = np.bincount(self._table[:place], minlength=len(self.shares)).tolist()
        parts = zip(self._before, self.shares, rest, strict=True)
        return [before + periods * share + count for before, share, count in parts]


class Schedule:
    """The phases of a run.  A sample's draw never changes once its phase is appended and another follows later."""

    def __init__(self, sources: int) -> None:
        self._sources = sources
        self._phases: list[Phase] = []

    def append(self, first_sample: int, shares: Sequence[int]) -> None:
        """A further phase.  Errors: a ValueError unless it starts after the last one, the first one at 0."""
        last = self._phases[-1].first_sample if self._phases else -1
        if first_sample <= last or (not self._phases and first_sample != 0) or len(shares) != self._sources:
            raise ValueError(f"a phase of {len(shares)} shares at sample {first_sample}, after one at {last}")
        before = self.counts(first_sample) if self._phases else [0] * self._sources
        self._phases.append(Phase(first_sample, shares, before))

    def draw(self, sample: int) -> Draw:
        """Source and ordinal of a sample.  Errors: an IndexError below 0."""
        if sample < 0:
            raise IndexError(f"sample {sample}")
        return self.phase_of(sample).draw(sample)

    def counts(self, samples: int) -> list[int]:
        """How many of the first `samples` samples each source gives."""
        return self.phase_of(samples).counts(samples)

    def phase_of(self, sample: int) -> Phase:
        """The phase that a sample stands in."""
        return self._phases[bisect_right(self._phases, sample, key=lambda phase: phase.first_sample) - 1]
