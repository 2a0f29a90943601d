"""Long texts cut at sentence ends into pieces that fit a number of tokens.

Sentence ends come from nupunkt (Punkt with its model inside the package, so nothing is
downloaded).  A sentence that does not fit by itself is cut between words, and a word that does
not fit between characters.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence


def split(text: str, limit: int, count: Callable[[str], int]) -> list[tuple[int, int]]:
    """Offsets [start, end) of the pieces of `text`; together, in order, they are the text exactly.

    Args:
        limit: most tokens of a piece, as `count` counts them.
        count: tokens of a string; called a few times a piece.

    Raises:
        ValueError: not even one character fits.
    """
    if not text:
        return []
    levels = (_sentence_ends, _word_ends, _character_ends)
    return list(_pieces(text, 0, len(text), levels, lambda piece: count(piece) <= limit))


_Ends = Callable[[str, int, int], list[int]]


def _pieces(
    text: str, start: int, end: int, levels: Sequence[_Ends], fits: Callable[[str], bool]
) -> Iterator[tuple[int, int]]:
    """Greedy pieces of text[start:end], cut at the ends of the first level; a part between two
    ends that does not fit is cut at the next level's."""
    if not levels:
        raise ValueError(f"not even one character fits at offset {start}")
    ends = levels[0](text, start, end)
    while start < end:
        first = bisect_right(ends, start)
        reached = _farthest(ends, first, lambda position, begin=start: fits(text[begin:position]))  # type: ignore[misc]
        if reached is None:
            yield from _pieces(text, start, ends[first], levels[1:], fits)
            start = ends[first]
        else:
            yield start, ends[reached]
            start = ends[reached]


def _farthest(ends: Sequence[int], first: int, fits: Callable[[int], bool]) -> int | None:
    """Index of the farthest end, from `first` on, that fits: doubling steps, then halving."""
    if not fits(ends[first]):
        return None
    good, step = first, 1
    while good + step < len(ends) and fits(ends[good + step]):
        good, step = good + step, step * 2
    bad = min(good + step, len(ends))
    while bad - good > 1:
        middle = (good + bad) // 2
        if fits(ends[middle]):
            good = middle
        else:
            bad = middle
    return good


def _sentence_ends(text: str, start: int, end: int) -> list[int]:
    import nupunkt

    ends = {start + stop for _, stop in nupunkt.sent_spans(text[start:end])}
    return sorted({stop for stop in ends if start < stop < end} | {end})


def _word_ends(text: str, start: int, end: int) -> list[int]:
    ends = {match.end() for match in re.compile(r"\s+").finditer(text, start, end)}
    return sorted(ends | {end})


def _character_ends(text: str, start: int, end: int) -> list[int]:
    return list(range(start + 1, end + 1))
