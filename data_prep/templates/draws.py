"""The draws of one document, text or pair: each axis has its own generator, and what was drawn is remembered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from data_prep.draws import draw

T = TypeVar("T")


class Draws:
    """Draws for one identifier.  A draw depends on (seed, identifier, axis) only; `drawn` keeps them by axis."""

    def __init__(self, seed: int, identifier: str) -> None:
        self.seed, self.identifier = seed, identifier
        self.drawn: dict[str, int] = {}

    def index(self, axis: str, count: int) -> int:
        """A uniform index in [0, count)."""
        if axis not in self.drawn:
            self.drawn[axis] = draw(self.seed, self.identifier, axis) * count >> 64
        return self.drawn[axis]

    def choose(self, axis: str, items: Sequence[T]) -> T:
        """One of the items, each as likely."""
        return items[self.index(axis, len(items))]

    def below(self, axis: str, share: float) -> bool:
        """True in this share of cases."""
        return draw(self.seed, self.identifier, axis) < share * 2**64

    def __str__(self) -> str:
        return ",".join(f"{axis}={index}" for axis, index in self.drawn.items())
