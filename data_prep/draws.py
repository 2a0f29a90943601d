"""Random draws that depend on (seed, id, axis) only: never on order, sharding or a crash.

Each axis (what is drawn: a style, a held-out set, ...) has its own stream, so that draws of
different axes are independent of each other.
"""

from __future__ import annotations

from collections.abc import Iterable

import xxhash


def draw(seed: int, identifier: str, axis: str) -> int:
    """A uniform integer in [0, 2**64)."""
    return xxhash.xxh3_64_intdigest(f"{axis}\x1f{seed}\x1f{identifier}".encode())


def draw_index(seed: int, identifier: str, axis: str, count: int) -> int:
    """A uniform index in [0, count)."""
    return draw(seed, identifier, axis) * count >> 64


def draw_subset(seed: int, identifiers: Iterable[str], axis: str, count: int) -> list[str]:
    """The `count` identifiers with the smallest draws, in the order of their draws (all, when fewer)."""
    return sorted(identifiers, key=lambda identifier: (draw(seed, identifier, axis), identifier))[:count]
