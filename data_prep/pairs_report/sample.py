"""A bounded draw of the pairs of a corpus, the same in whatever order they come and however many files they fill.

Every pair has a number of its own, a hash of the seed and the pair; the pairs with the smallest numbers are drawn.  So
each is drawn as likely as any other, a smaller draw is a part of a larger one, and much of it stays as a corpus grows.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from dataclasses import dataclass, field

from data_prep.draws import draw
from data_prep.records import AugmentedText, Pair

AXIS = "category"


@dataclass(frozen=True, slots=True)
class DrawnPair:
    """A pair, the document it is about and where that piece starts in it, and what the rules call it."""

    document_id: str
    start: int
    pair: Pair
    rules: str


@dataclass
class Sample:
    """The `size` pairs with the smallest draws, among those of the categories in `only`, or of all.

    `population` counts the pairs they are drawn from.
    """

    size: int
    seed: int
    only: Collection[str] = ()
    population: int = 0
    _kept: list[tuple[int, int, DrawnPair]] = field(default_factory=list)

    def offer(self, pair: Pair, text: AugmentedText, category: str) -> None:
        """Draws the pair, or not."""
        if self.only and category not in self.only:
            return
        self.population += 1
        parts = (text.source, text.document_id, text.start, text.sample, pair.question, pair.answer)
        number = draw(self.seed, "\x1f".join(map(str, parts)), AXIS)
        # The largest number is to go first from a heap that gives the smallest; of equal pairs the first stays.
        item = (-number, -self.population, DrawnPair(text.document_id, text.start, pair, category))
        if len(self._kept) < self.size:
            heapq.heappush(self._kept, item)
        elif item > self._kept[0]:
            heapq.heapreplace(self._kept, item)

    def drawn(self) -> list[DrawnPair]:
        """The pairs, in the order of their numbers."""
        return [pair for *_, pair in sorted(self._kept, key=lambda item: item[:2], reverse=True)]
