"""Examples of one dataset -> tuning sequences of the synthesizer: shots in the wire format, one behind the other.

    sequence = BOS " <CON> text </CON>\\n\\n<QUE> q <ANS> a </END>\\n\\n<QUE> ... </END>" EOS   BOS " <CON> ...

A sequence says its own BOS and EOS, as spans of class control, so it is indexed with `--no-prepend-bos
--no-append-eod`.  The frame of a text is part of its span of class text: so the loss policy `pairs` counts, in every
shot, what stands from the first `<QUE>` up to and with EOS (see packing/labels.py), and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from data_prep.records import AugmentedText, Chain, Origin, TrainingText
from data_prep.synthesis.wire import context_part, escape, pairs_part
from data_prep.templates.parts import Piece, spans_of, template

TEMPLATE = "synthesizer_tuning"
# BOS and EOS of a shot [tokens].
_AROUND = 2
_LEAD = " <CON> "

# Tokens of each of some texts, encoded by itself, nothing added.
Lengths = Callable[[Sequence[str]], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Shot:
    """An example that fits a sequence, and its length [tokens]; `cut` are the pairs it lost at its end for that."""

    example: AugmentedText
    tokens: int
    cut: int = 0


def fit(examples: Sequence[AugmentedText], limit: int, lengths: Lengths) -> list[Shot | None]:
    """Each example with the leading pairs that fit in `limit` tokens; None for one whose first pair does not."""
    counted = lengths([_between(example) for example in examples])
    return [
        Shot(example, tokens + _AROUND) if tokens + _AROUND <= limit else _cut(example, limit, lengths)
        for example, tokens in zip(examples, counted, strict=True)
    ]


def concatenate(shots: Iterable[Shot], limit: int) -> Iterator[list[AugmentedText]]:
    """The shots of each sequence, in order; a sequence ends where the next shot would exceed `limit` tokens."""
    sequence: list[AugmentedText] = []
    used = 0
    for shot in shots:
        if sequence and used + shot.tokens > limit:
            yield sequence
            sequence, used = [], 0
        sequence.append(shot.example)
        used += shot.tokens
    if sequence:
        yield sequence


def tuning_text(chain: Chain, bos: str, eos: str, seed: int) -> TrainingText:
    """The tuning sequence of a chain; `bos` and `eos` are what spells these tokens."""
    pieces: list[Piece] = []
    origins: list[Origin] = []
    pair = length = 0
    for number, example in enumerate(chain.texts):
        shot = list(_pieces(example, number, pair, bos, eos))
        at = length + len(bos) + len(_LEAD)
        checks = tuple(" ".join(each.checks) for each in example.pairs)
        origins.append(Origin(example.document_id, example.source, 0, len(example.text), checks, at))
        pieces += shot
        pair += len(example.pairs)
        length += sum(len(piece.text) for piece in shot)
    text = "".join(piece.text for piece in pieces)
    return TrainingText(chain.id, text, tuple(origins), TEMPLATE, seed, spans_of(pieces))


def _between(example: AugmentedText) -> str:
    """What stands between BOS and EOS."""
    return context_part(example.text) + pairs_part(example.pairs)


def _cut(example: AugmentedText, limit: int, lengths: Lengths) -> Shot | None:
    """The most leading pairs that fit, by halving."""
    best: Shot | None = None
    fits, exceeds = 0, len(example.pairs)
    while exceeds - fits > 1:
        kept = (fits + exceeds) // 2
        shorter = replace(example, pairs=example.pairs[:kept])
        tokens = lengths([_between(shorter)])[0] + _AROUND
        if tokens <= limit:
            fits, best = kept, Shot(shorter, tokens, len(example.pairs) - kept)
        else:
            exceeds = kept
    return best


def _pieces(example: AugmentedText, number: int, first_pair: int, bos: str, eos: str) -> Iterator[Piece]:
    yield Piece("control", bos)
    yield Piece("text", context_part(example.text), number)
    for place, pair in enumerate(example.pairs):
        yield template("\n\n<QUE> " if place else "<QUE> ")
        yield Piece("question", escape(pair.question), first_pair + place)
        yield template(" <ANS> ")
        yield Piece("answer", escape(pair.answer), first_pair + place)
        yield template(" </END>")
    yield Piece("control", eos)
