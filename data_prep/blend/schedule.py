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
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np

# Places that are laid out at once.
_CHUNK = 4096


class Draw(NamedTuple):
    """Sample i is sample number `ordinal`, from 0, of source `source`."""

    source: int
    ordinal: int


def lay_out_period(shares: Sequence[int]) -> np.ndarray:
    """The source of each place of a period, int32 [sum(shares)]; a share may be 0."""
    return np.fromiter(_places(shares), np.int32, sum(shares))


def _places(shares: Sequence[int]) -> Iterator[int]:
    """The same place by place.  In the heaps a source is one number: when it may stand, or must, and which it is."""
    period, sources = sum(shares), len(shares)
    waiting = [source for source, share in enumerate(shares) if share]
    ready: list[int] = []
    units = [0] * sources
    for place in range(period):
        while waiting and waiting[0] < (place + 1) * sources:
            source = heapq.heappop(waiting) % sources
            deadline = -(-(units[source] + 1) * period // shares[source]) - 1
            heapq.heappush(ready, deadline * sources + source)
        source = heapq.heappop(ready) % sources
        yield source
        units[source] += 1
        if units[source] < shares[source]:
            heapq.heappush(waiting, units[source] * period // shares[source] * sources + source)


class Phase:
    """One set of shares from `first_sample` on; `before` [sources] counts what earlier phases drew.

    A period is laid out as far as it was asked for, so that a phase costs nothing at first.  Threads may ask.
    """

    def __init__(self, first_sample: int, shares: Sequence[int], before: Sequence[int]) -> None:
        self.first_sample, self.shares, self._before = first_sample, tuple(shares), tuple(before)
        self._table = np.zeros(sum(shares), np.int32)
        self._ordinals = np.zeros(sum(shares), np.int32)
        self._places, self._laid_out, self._lock = _places(shares), 0, Lock()
        self._seen = [0] * len(shares)

    def _lay_out(self, places: int) -> None:
        """Lays the period out to `places` at least."""
        with self._lock:
            start, stop = self._laid_out, min(-(-places // _CHUNK) * _CHUNK, self.period)
            for place, source in zip(range(start, stop), self._places):  # noqa: B905  the rest of the places comes later
                self._table[place], self._ordinals[place] = source, self._seen[source]
                self._seen[source] += 1
            self._laid_out = max(start, stop)

    @property
    def period(self) -> int:
        return len(self._table)

    def draw(self, sample: int) -> Draw:
        """The draw of a sample at or after `first_sample`."""
        periods, place = divmod(sample - self.first_sample, self.period)
        if place >= self._laid_out:
            self._lay_out(place + 1)
        source = int(self._table[place])
        ordinal = self._before[source] + periods * self.shares[source] + int(self._ordinals[place])
        return Draw(source, ordinal)

    def sources(self, start: int, stop: int) -> np.ndarray:
        """The source of each of the samples [start, stop), all in this phase, int32 [stop - start]."""
        self._lay_out(self.period)
        return self._table[np.arange(start - self.first_sample, stop - self.first_sample) % self.period]

    def counts(self, samples: int) -> list[int]:
        """Samples of each source among the first `samples` of the run, which end in this phase."""
        periods, place = divmod(samples - self.first_sample, self.period)
        self._lay_out(place)
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
