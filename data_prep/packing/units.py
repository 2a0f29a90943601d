"""Where a training text may be cut: into its texts, each with its pairs (pure).

The runs of a document (PREFIX.spans) say which tokens are a text, which belong to which pair, and which are template.
A template run, BOS included, belongs to what follows it, the last ones to what stands before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from data_prep.indexing.spans import CLASSES

TEXT: Final = -1
_TEXT_CLASS, _PAIR_CLASSES = CLASSES.index("text"), (CLASSES.index("question"), CLASSES.index("answer"))

# A part of a document: (document, offset, length).
Row = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens [start, stop) of a document, of its text (`pair` is TEXT) or of a pair."""

    pair: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Unit:
    """Tokens [start, stop) of a document that stay together: a text with its pairs, or pairs that have no text."""

    start: int
    stop: int
    parts: tuple[Part, ...]


def units_of(ends: Sequence[int], of: Sequence[int], classes: Sequence[int]) -> list[Unit]:
    """The units of a document, in order, from the columns of its runs."""
    parts = _parts(ends, of, classes)
    groups = _groups(parts, of, classes)
    last = {group: place for place, group in enumerate(groups)}
    units, begun, reach = list[Unit](), 0, 0
    for place, group in enumerate(groups):
        reach = max(reach, last[group])
        if reach == place:
            units.append(Unit(parts[begun].start, parts[place].stop, tuple(parts[begun : place + 1])))
            begun = place + 1
    return units


def _parts(ends: Sequence[int], of: Sequence[int], classes: Sequence[int]) -> list[Part]:
    """A part for each run of a text or a pair, with the template before it."""
    parts, start = list[Part](), 0
    for end, number, kind in zip(ends, of, classes, strict=True):
        if kind == _TEXT_CLASS or kind in _PAIR_CLASSES:
            parts.append(Part(TEXT if kind == _TEXT_CLASS else number, start, end))
            start = end
    if not parts:
        return [Part(TEXT, 0, ends[-1])]
    parts[-1] = Part(parts[-1].pair, parts[-1].start, ends[-1])
    return parts


def _groups(parts: Sequence[Part], of: Sequence[int], classes: Sequence[int]) -> list[int]:
    """Which text each part belongs to; the pair itself where a document shows no text.

    Pairs come after their text, or in all of a document before it (inversion); where both would fit, since a text has
    no pairs, the document is one group.
    """
    is_text = [part.pair == TEXT for part in parts]
    texts = sum(is_text)
    if texts == 0:
        return [part.pair for part in parts]
    if texts == len(parts):
        return list(range(len(parts)))
    if texts == 1 or (is_text[0] and is_text[-1]):
        return [0] * len(parts)
    groups, group = list[int](), -1 if is_text[0] else 0
    for shown in is_text:
        group += shown and is_text[0]
        groups.append(group)
        group += shown and not is_text[0]
    return groups


def rows_of(document: int, parts: Sequence[Part]) -> tuple[list[Row], int]:
    """(document, offset, length) of parts that rise, those that follow each other as one; and their tokens."""
    rows: list[Row] = []
    for part in parts:
        length = part.stop - part.start
        if rows and rows[-1][1] + rows[-1][2] == part.start:
            rows[-1] = (document, rows[-1][1], rows[-1][2] + length)
        else:
            rows.append((document, part.start, length))
    return rows, sum(length for _, _, length in rows)
