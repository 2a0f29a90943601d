"""Pieces of rendered text with the class each belongs to, and the spans that come of them (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from data_prep.records import Span, SpanClass
from data_prep.templates.schema import FIELD


class Piece(NamedTuple):
    """A piece of rendered text, its class, and the origin or pair it is of (see `records.Span`)."""

    kind: SpanClass
    text: str
    of: int = -1


def template(text: str) -> Piece:
    """A piece of our own wording."""
    return Piece("template", text)


@cache
def _split(style: str) -> tuple[str, ...]:
    """Wording and field names of a style in turn, wording first."""
    return tuple(FIELD.split(style))


def fill(style: str, values: Mapping[str, Piece]) -> list[Piece]:
    """The pieces of a filled style.  Values are put in once: a `{answer}` inside a value stays as it is."""
    return [values[piece] if odd % 2 else template(piece) for odd, piece in enumerate(_split(style))]


def fill_text(style: str, **values: str) -> str:
    """A filled style that is all of one class."""
    return "".join(values[piece] if odd % 2 else piece for odd, piece in enumerate(_split(style)))


def joined(groups: Iterable[Sequence[Piece]], separator: str) -> list[Piece]:
    """The pieces of all groups, with a separator between."""
    pieces: list[Piece] = []
    for place, group in enumerate(groups):
        if place:
            pieces.append(template(separator))
        pieces += group
    return pieces


def spans_of(pieces: Iterable[Piece]) -> tuple[Span, ...]:
    """Spans of the joined pieces; neighbours of one class and origin are one span, empty pieces are none.

    Control tokens stay apart: each is a span.  Blanks of a template before a question or an answer are of that: a
    tokenizer makes one token of a blank and the word after it, and the class of a token is that of its first byte.
    """
    spans: list[Span] = []
    start, end = 0, 0
    last: tuple[SpanClass, int] | None = None
    for kind, text, of in blanks_moved(pieces):
        if not text:
            continue
        if last is not None and (last != (kind, of) or kind == "control"):
            spans.append(Span(start, end, *last))
            start = end
        last = (kind, of)
        end += len(text)
    if last is not None:
        spans.append(Span(start, end, *last))
    return tuple(spans)


def blanks_moved(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same text in pieces, those of questions and answers with the template's blanks before them."""
    held: list[Piece] = []  # templates, whose last blanks may still move
    for piece in pieces:
        if not piece.text:
            continue
        if piece.kind == "template":
            held.append(piece)
            continue
        joint = "".join(each.text for each in held)
        kept = joint.rstrip(" ") if piece.kind in ("question", "answer") else joint
        if kept:
            yield template(kept)
        yield piece._replace(text=joint[len(kept) :] + piece.text)
        held = []
    yield from held
