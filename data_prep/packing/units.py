"""Where a training text may be cut: into its texts, each with its pairs (pure).

The runs of a document (PREFIX.spans) say which tokens are a text, which belong to which pair, and which are template.
A template run, BOS included, belongs to what follows it, the last ones to what stands before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from data_prep.indexing.spans import CLASSES

TEXT: Final = -1
_SHOWN, _PAIR, _FRAME = b"t", b"p", b"."
_OF_CLASS = {"text": _SHOWN, "question": _PAIR, "answer": _PAIR}
# From class codes to those three.
_KINDS = bytes.maketrans(bytes(range(len(CLASSES))), b"".join(_OF_CLASS.get(name, _FRAME) for name in CLASSES))

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


def units_of(ends: Sequence[int], of: Sequence[int], classes: bytes, pairs_first: bool | None = None) -> list[Unit]:
    """The units of a document, in order, from the columns of its runs.

    Pairs come after their text, or in all of a document before it (inversion).  Where both would fit, since it begins
    and ends with a text, `pairs_first` decides; the document is one unit if that is None, or if neither fits.
    """
    kinds = classes.translate(_KINDS)
    content = kinds.strip(_FRAME)
    texts = kinds.count(_SHOWN)
    if not texts:
        return _without_texts(parts_of(ends, of, classes))
    text_first = content.startswith(_SHOWN)
    if texts < len(content) - content.count(_FRAME):
        if text_first and content.endswith(_SHOWN) and pairs_first is not None:
            text_first = not pairs_first
        elif texts == 1 or text_first == content.endswith(_SHOWN):
            return [Unit(0, ends[-1])]
    places = [place for place, kind in enumerate(kinds) if kind == _SHOWN[0]]
    if text_first:  # what is between two texts belongs to the first, the template at its end to the next
        stops = [ends[len(kinds[:place].rstrip(_FRAME)) - 1] for place in places[1:]]
    else:
        stops = [ends[place] for place in places[:-1]]
    return [Unit(start, stop) for start, stop in pairwise([0, *stops, ends[-1]])]


def parts_of(ends: Sequence[int], of: Sequence[int], classes: bytes) -> list[Part]:
    """A part for each run of a text or a pair, with the template before it."""
    parts, start = list[Part](), 0
    for end, number, kind in zip(ends, of, classes.translate(_KINDS), strict=True):
        if kind != _FRAME[0]:
            parts.append(Part(TEXT if kind == _SHOWN[0] else number, start, end))
            start = end
    if not parts:
        return [Part(TEXT, 0, ends[-1])]
    parts[-1] = Part(parts[-1].pair, parts[-1].start, ends[-1])
    return parts


def _without_texts(parts: Sequence[Part]) -> list[Unit]:
    """A unit for each pair; pairs whose questions and answers stand among each other's are one."""
    last = {part.pair: place for place, part in enumerate(parts)}
    units, start, reach = list[Unit](), 0, 0
    for place, part in enumerate(parts):
        reach = max(reach, last[part.pair])
        if reach == place:
            units.append(Unit(start, part.stop))
            start = part.stop
    return units


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
