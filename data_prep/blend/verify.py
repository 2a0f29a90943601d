"""What a run really drew, held against its plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from data_prep.blend.file import Blend


@dataclass(frozen=True, slots=True)
class DrawCheck:
    """One source: samples drawn, samples its share asks for, and whether they agree within `limit`."""

    source: str
    drawn: int
    expected: float
    limit: int
    within: bool


def verify_draws(blend: Blend, start: int, stop: int, drawn: Iterable[str] | None = None) -> tuple[DrawCheck, ...]:
    """Counts the samples [start, stop) by source, and compares with start and stop times the shares.

    `drawn` names the source of each sample as a run saw it; without it the blend is asked again.
    From sample 0 a right run is within one sample of its shares; a range further on has two ends,
    each within one.  Errors: a ValueError if `drawn` has not one name a sample.
    """
    names = [source.name for source in blend.sources]
    seen = Counter(drawn if drawn is not None else (names[blend.locate(i).source] for i in range(start, stop)))
    if seen.total() != stop - start or seen.keys() - set(names):
        raise ValueError(f"{seen.total()} samples of {sorted(seen)} for the range [{start}, {stop}) of {names}")
    limit = 1 if start == 0 else 2
    checks = []
    for index, name in enumerate(names):
        expected = _expected(blend, index, stop) - _expected(blend, index, start)
        within = abs(seen[name] - expected) < limit
        checks.append(DrawCheck(name, seen[name], float(expected), limit, within))
    return tuple(checks)


def _expected(blend: Blend, source: int, samples: int) -> Fraction:
    """Samples of a source that the shares of all phases ask for among the first `samples`, exactly."""
    total = Fraction(0)
    ends = [*(phase.first_sample for phase in blend.phases[1:]), samples]
    for phase, end in zip(blend.phases, ends, strict=True):
        length = max(0, min(end, samples) - phase.first_sample)
        total += Fraction(length * phase.shares[source], sum(phase.shares))
    return total
