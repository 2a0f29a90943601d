"""What the tests of templates share: pairs of each kind, chains of them, and a chi-square bound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from data_prep.records import AugmentedText, Chain, Pair, Span, TrainingText
from data_prep.synthesis.wire import THINK_LINE, recognise

OPTIONS = "\nOptions:\n- red\n- blue\n- {answer}"
THOUGHT = "It is dark.\nTherefore, the answer is blue"
PAIRS = (
    recognise("What is {answer}, {text}?", "It is {question}."),
    recognise("Which?" + OPTIONS, "blue"),
    recognise("Why?\n" + THINK_LINE, THOUGHT),
    recognise("Which and why?" + OPTIONS + "\n" + THINK_LINE, THOUGHT),
)
LANGUAGES = ("en", "de", "zh")
MODES = ("classic", "dialogue", "numbered", "worked_examples", "next_turn", "questions_only")


def chain_of(number: int, pairs: Sequence[Sequence[Pair]] = (PAIRS,)) -> Chain:
    """A chain with a text for each group of pairs."""
    texts = tuple(
        AugmentedText(f"d{number}-{place}", f"Text {place} of chain {number}.", tuple(group))
        for place, group in enumerate(pairs)
    )
    return Chain(f"c{number}", texts)


def said(text: TrainingText, kind: str, of: int) -> str:
    """What the spans of a class and an origin or pair say, joined by a mark that no style has.

    Blanks before a question or an answer are left out: they may be the template's.
    """
    shown = [text.text[span.start : span.end] for span in text.spans if (span.kind, span.of) == (kind, of)]
    return "\x00".join(part if kind == "text" else part.lstrip(" ") for part in shown)


def covers(spans: Sequence[Span], length: int) -> bool:
    """The spans lie one behind the other from 0 to length, none empty."""
    edges = [0, *(span.end for span in spans)]
    return edges[-1] == length and all(
        span.start == start and span.start < span.end for span, start in zip(spans, edges, strict=False)
    )


def draws(text: TrainingText) -> dict[str, int]:
    """What a training text of one text says was drawn for it, by axis."""
    return {axis: int(index) for axis, index in (item.split("=") for item in text.template.split("; ")[1].split(","))}


def unlikely(found: Mapping[object, int], expected: Mapping[object, float]) -> bool:
    """Chi-square above its mean by five standard deviations: chance does that less than once in 200 times, and where
    there are many cells less than once in 10,000.
    """
    assert found.keys() <= expected.keys()
    statistic = sum((found.get(cell, 0) - wanted) ** 2 / wanted for cell, wanted in expected.items())
    freedom = len(expected) - 1
    return statistic > freedom + 5 * math.sqrt(2 * freedom)
