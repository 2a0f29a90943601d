"""What a run really drew, held against its plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from data_prep.blend.file import open_source
from data_prep.blend.model import Blend
from data_prep.order import Permutation


@dataclass(frozen=True, slots=True)
class DrawCheck:
    """One source: samples drawn, samples its share asks for, and whether they agree within `limit`."""

    source: str
    drawn: int
    expected: float
    limit: int
    within: bool


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a run recorded of its samples [start, stop): how many each source gave, and checksums of their tokens."""

    start: int
    stop: int
    drawn: Mapping[str, int]
    checksums: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """A stretch whose record is not the schedule's: `source` gave `drawn` samples where it has `planned` there."""

    start: int
    stop: int
    source: str
    drawn: int
    planned: int


def verify_draws(blend: Blend, start: int, stop: int, drawn: Iterable[str] | None = None) -> tuple[DrawCheck, ...]:
    """Counts the samples [start, stop) by source, and compares with start and stop times the shares.

    `drawn` names the source of each sample as a run saw it; without it the blend is asked again.
    From the start of a phase a right run is within one sample of its shares; a range further on has
    two ends, each within one, and each further phase adds one.  Errors: a ValueError if `drawn` has
    not one name a sample.
    """
    names = [source.name for source in blend.sources]
    seen = Counter(drawn if drawn is not None else (names[blend.locate(i).source] for i in range(start, stop)))
    if seen.total() != stop - start or seen.keys() - set(names):
        raise ValueError(f"{seen.total()} samples of {sorted(seen)} for the range [{start}, {stop}) of {names}")
    return check_counts(blend, start, stop, seen)


def check_counts(blend: Blend, start: int, stop: int, seen: Mapping[str, int]) -> tuple[DrawCheck, ...]:
    """As `verify_draws`, of samples that are counted already."""
    limit = _limit(blend, start, stop)
    checks = []
    for index, source in enumerate(blend.sources):
        expected = _expected(blend, index, stop) - _expected(blend, index, start)
        drawn = seen.get(source.name, 0)
        checks.append(DrawCheck(source.name, drawn, float(expected), limit, abs(drawn - expected) < limit))
    return tuple(checks)


def verify_record(blend: Blend, record: Sequence[Stretch]) -> list[Fault]:
    """Holds each recorded stretch against the schedule's own count of it, which is exact."""
    faults = []
    names = [source.name for source in blend.sources]
    stop, after = 0, [0] * len(names)
    for stretch in record:
        # Steps follow each other, and a count costs more than the rest.
        before = after if stretch.start == stop else blend.schedule.counts(stretch.start)
        stop, after = stretch.stop, blend.schedule.counts(stretch.stop)
        planned = {name: b - a for name, a, b in zip(names, before, after, strict=True)}
        for name in {**planned, **stretch.drawn}:
            if (had := stretch.drawn.get(name, 0)) != planned.get(name, 0):
                faults.append(Fault(stretch.start, stretch.stop, name, had, planned.get(name, 0)))
    return faults


def repeated_documents(blend: Blend, source: int, drawn: int) -> dict[int, int]:
    """Times drawn -> documents of a source, after `drawn` samples of it.

    A document counts as drawn in each epoch in which one of its sequences was; so all have those of the whole epochs,
    and one more if the epoch in hand has reached them.  Errors: as `open_source`.
    """
    of = blend.sources[source]
    _, table = open_source(of)
    epochs, begun = divmod(drawn, of.sequences)
    first = Permutation(of.sequences, blend.seed, of.name, epochs).many(0, begun)
    reached, used = _documents(table.starts, table.rows, np.sort(first)), of.documents
    if of.sequences < of.of_sequences:
        used = _documents(table.starts, table.rows, np.arange(of.sequences))
    counts = {0: of.documents - used, epochs: used - reached, epochs + 1: reached}
    if not epochs:
        counts[0] = of.documents - reached
    return {times: count for times, count in sorted(counts.items()) if count}


def _documents(starts: np.ndarray, rows: np.ndarray, sequences: np.ndarray) -> int:
    """Distinct documents in some sequences of a pack table."""
    begin, counts = starts[sequences], starts[sequences + 1] - starts[sequences]
    places = np.repeat(begin - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    return len(np.unique(rows[places, 0]))


def _limit(blend: Blend, start: int, stop: int) -> int:
    """Ends of the range that stand inside a phase, and ends of phases inside the range: each may be off by one."""
    starts = {phase.first_sample for phase in blend.phases}
    return max(1, (start not in starts) + sum(start < first < stop for first in starts) + 1)


def _expected(blend: Blend, source: int, samples: int) -> Fraction:
    """Samples of a source that the shares of all phases ask for among the first `samples`, exactly."""
    total = Fraction(0)
    ends = [*(phase.first_sample for phase in blend.phases[1:]), samples]
    for phase, end in zip(blend.phases, ends, strict=True):
        length = max(0, min(end, samples) - phase.first_sample)
        total += Fraction(length * phase.shares[source], sum(phase.shares))
    return total
