"""Figures of counts as plain data: bars, and a sunburst of two rings.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_ipt.report.tables import csv_link


@dataclass(frozen=True, slots=True)
class Bars:
    """A bar a row; rows stand from left to right, or from top to bottom where `lying`."""

    anchor: str
    caption: str
    alt: str
    x_label: str
    y_label: str
    rows: tuple[tuple[str, int], ...]
    link: str
    lying: bool = False
    large: bool = False


@dataclass(frozen=True, slots=True)
class Wedge:
    """A part of the inner ring with its parts of the outer one, which leave none over."""

    name: str
    count: int
    parts: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Sunburst:
    """Two rings, the largest wedge first, clockwise from the top; an empty name is what is not told apart."""

    anchor: str
    caption: str
    alt: str
    wedges: tuple[Wedge, ...]
    link: str
    large: bool = True


def histogram(counts: Mapping[int, int], most_bars: int) -> tuple[tuple[str, int], ...]:
    """Counts by number as bars of equal width, at most `most_bars`; the last takes everything above the 99th per cent.

    A bar is named "3" or "10-19"; its counts add up to those given.
    """
    if not counts:
        return ()
    end = _percentile(counts, 0.99)
    low = min(counts)
    width = _round_width(-(-(end - low + 1) // most_bars))
    start = (low - 1) // width * width + 1 if low else 0  # 1-5, 6-10: no bar begins below what there is
    starts = list(range(start, end + 1, width))
    sums = [0] * len(starts)
    for value, count in counts.items():
        sums[min((value - start) // width, len(starts) - 1)] += count
    names = [str(first) if width == 1 else f"{first}-{first + width - 1}" for first in starts]
    if max(counts) > starts[-1] + width - 1:
        names[-1] = f"{starts[-1]}+"
    return tuple(zip(names, sums, strict=True))


def _percentile(counts: Mapping[int, int], share: float) -> int:
    """The smallest number that so large a share of the counts does not exceed."""
    total, seen = sum(counts.values()), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= share * total:
            return value
    return max(counts)


def _round_width(width: int) -> int:
    """The next of 1, 2, 5, 10, 20, ..."""
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale >= width:
                return step * scale
        scale *= 10


def wedges(counts: Mapping[tuple[str, str], int], most: int, most_parts: int) -> tuple[Wedge, ...]:
    """The `most` commonest first words, each with its commonest second words; the rest of each under an empty name."""
    firsts: dict[str, dict[str, int]] = {}
    for (first, second), count in counts.items():
        firsts.setdefault(first, {})[second] = count
    ordered = sorted(firsts.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    made = []
    for first, seconds in ordered[:most]:
        named = sorted(((word, count) for word, count in seconds.items() if word), key=lambda item: (-item[1], item[0]))
        rest = sum(seconds.values()) - sum(count for _, count in named[:most_parts])
        parts = (*named[:most_parts], *([("", rest)] if rest else []))
        made.append(Wedge(first, sum(seconds.values()), parts))
    rest = sum(sum(seconds.values()) for _, seconds in ordered[most:])
    return (*made, *([Wedge("", rest, (("", rest),))] if rest else []))


def counts_link(names: Sequence[str], rows: Sequence[tuple[str | int, int]]) -> str:
    return csv_link(names, rows)
