"""How many samples a step takes, as a function of the samples consumed.  Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """(first sample, batch) in rising order from sample 0: a step that begins at or after a first sample has its batch.

    So a step may go beyond the first sample of the next size, as in Megatron; no step is cut.
    """

    stretches: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Megatron's `step_batch_size_schedule`, in samples: "0:4 32:8".  ValueError for another text."""
        found = []
        for entry in text.replace(",", " ").split():
            first, separator, batch = entry.partition(":")
            if not separator:
                raise ValueError(f"'{entry}' is not FIRST_SAMPLE:BATCH")
            found.append((_number(first), _number(batch)))
        firsts = [first for first, _ in found]
        if not found or firsts[0] != 0 or any(after <= before for before, after in pairwise(firsts)):
            raise ValueError(f"first samples {firsts} do not rise from 0")
        if any(batch < 1 for _, batch in found):
            raise ValueError("a batch has at least one sample")
        return cls(tuple(found))

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(batch for _, batch in self.stretches)

    def at(self, consumed: int) -> int:
        """The batch of the step that begins after `consumed` samples."""
        return next(batch for first, batch in reversed(self.stretches) if consumed >= first)

    def consumed_after(self, iterations: int) -> int:
        """Samples that the first `iterations` steps take."""
        consumed = 0
        for (_, batch), (until, _) in pairwise((*self.stretches, (None, 0))):
            steps = iterations if until is None else min(iterations, max(0, -(-(until - consumed) // batch)))
            consumed, iterations = consumed + steps * batch, iterations - steps
        return consumed

    def steps(self, consumed: int, count: int) -> Iterator[range]:
        """The samples of each of the `count` steps after `consumed` samples."""
        for _ in range(count):
            step = range(consumed, consumed + self.at(consumed))
            yield step
            consumed = step.stop


def _number(text: str) -> int:
    """A whole number, perhaps with one of Megatron's suffixes: 1.5K is 1,500."""
    text = text.strip().upper()
    unit = SUFFIXES.get(text[-1:], 1)
    return int(float(text if unit == 1 else text[:-1]) * unit)
