"""The modes: how a text and its pairs stand together (pure).

Six layouts of method section 2 and one of ours.  Which mode a document has, and whether its pairs come first
(inversion), is drawn once a chain, as its weights ask about every text of the chain; all else is drawn for each text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from data_prep.records import Chain
from data_prep.templates.draws import Draws
from data_prep.templates.parts import Piece, fill_text, joined, template
from data_prep.templates.styles import Entry, Styles

Mode = Literal["classic", "dialogue", "numbered", "worked_examples", "next_turn", "questions_only"]

# Weights of the authors' code in percent: where every text of the chain has two pairs or more, and elsewhere.
PAPER_WEIGHTS: Final[Mapping[Mode, int]] = {
    "classic": 80,
    "dialogue": 5,
    "numbered": 5,
    "worked_examples": 5,
    "next_turn": 5,
}
PAPER_WEIGHTS_FEW_PAIRS: Final[Mapping[Mode, int]] = {"classic": 95, "dialogue": 5}
# Modes in which the pairs may come first.
INVERTIBLE: Final = frozenset({"classic", "dialogue"})
# Modes that need a second pair: with one there is nothing to number, and no example to show.
OF_SEVERAL: Final = frozenset({"numbered", "worked_examples"})
# Modes that leave answers out, as their data files say.
WITHOUT_ANSWERS: Final = frozenset({"questions_only"})
# A label that is an indent, or begins with a mark that stands at the start of a line only.
_OF_A_LINE: Final = re.compile(r"\s|#+\s|[*>-]\s")


@dataclass(frozen=True, slots=True)
class Turn:
    """A pair in its style: how it is asked and how it is replied.

    `number` counts a text's pairs from 1; `listed` says that options are listed in the question.
    """

    number: int
    ask: list[Piece]
    reply: list[Piece]
    listed: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """What the layout of one text depends on, besides its pairs; without its text a document is closed book."""

    styles: Styles
    draws: Draws
    with_text: bool
    inverted: bool
    gap: Piece

    def choose(self, axis: str, *lists: str) -> Entry:
        """An entry drawn from all the lists together."""
        pool: tuple[Entry, ...] = ()
        for name in lists:
            pool += self.styles.lists[name]
        return self.draws.choose(axis, pool)


def mode_of(chain: Chain, preset: Mode | Literal["paper"], draws: Draws) -> Mode:
    """The mode of a chain's document: the one asked for, or one drawn at the paper's weights."""
    if preset != "paper":
        return preset
    many = all(len(text.pairs) >= 2 for text in chain.texts)
    weights = PAPER_WEIGHTS if many else PAPER_WEIGHTS_FEW_PAIRS
    ticket = draws.index("mode", sum(weights.values()))
    for mode, weight in weights.items():
        ticket -= weight
        if ticket < 0:
            return mode
    raise AssertionError("a ticket is below the sum of the weights")


def lay_out(text: Piece, turns: Sequence[Turn], mode: Mode, stage: Stage) -> list[Piece]:
    """The pieces of a text and its pairs; of the text alone where it has none.

    Where a mode of several has one pair, it is laid out as in classic.
    """
    body = BODIES["classic" if mode in OF_SEVERAL and not turns[1:] else mode](turns, stage) if turns else []
    if not stage.with_text:
        return body
    shown = _text(text, bool(turns), stage)
    if not body:
        return shown
    return [*body, stage.gap, *shown] if stage.inverted else [*shown, stage.gap, *body]


def _text(text: Piece, has_pairs: bool, stage: Stage) -> list[Piece]:
    if not stage.draws.below("text_shown", stage.styles.shares["texts.shown"]):
        return [text]
    place = ["texts.after_pairs" if stage.inverted else "texts.before_pairs"] if has_pairs else []
    style = stage.choose("texts", "texts.anywhere", *place)[0]
    before, _, after = style.partition("{text}")
    return [template(before), text, template(after)]


def _task(stage: Stage) -> list[Piece]:
    """A lead-in to the pairs, or none."""
    if not stage.draws.below("task_shown", stage.styles.shares["tasks.shown"]):
        return []
    place = ["tasks.before_text" if stage.inverted else "tasks.after_text"] if stage.with_text else []
    return [template(stage.choose("tasks", "tasks.anywhere", *place)[0]), stage.gap]


def _labelled(turns: Sequence[Turn], stage: Stage) -> list[Piece]:
    """Question and answer, question and answer, under labels."""
    question, answer = stage.choose("labels", "labels.labels")
    joint, separator = stage.choose("spacing", "spacing.pairs")
    below = joint if "\n" in joint else "\n"  # an answer does not go on the line of the last option
    if _OF_A_LINE.match(question) or _OF_A_LINE.match(answer):
        joint = below
    return joined(
        [
            [
                template(fill_text(question, number=str(turn.number))),
                *turn.ask,
                template((below if turn.listed else joint) + fill_text(answer, number=str(turn.number))),
                *turn.reply,
            ]
            for turn in turns
        ],
        separator,
    )


def _classic(turns: Sequence[Turn], stage: Stage) -> list[Piece]:
    return [*_task(stage), *_labelled(turns, stage)]


def _conversation(turns: Sequence[Turn], stage: Stage) -> tuple[list[Piece], list[list[Piece]], Entry]:
    """An opening, the turns of both speakers, and their names."""
    speakers = stage.choose("speakers", "dialogue.speakers")
    lists = ("dialogue.openings", "dialogue.openings_with_text") if stage.with_text else ("dialogue.openings",)
    opening = fill_text(stage.choose("openings", *lists)[0], first=speakers[0], second=speakers[1])
    prefix = stage.choose("turns", "dialogue.turns")[0]
    asks, replies = (template(fill_text(prefix, speaker=speaker)) for speaker in speakers)
    said = [said for turn in turns for said in ([asks, *turn.ask], [replies, *turn.reply])]
    return [template(opening), stage.gap], said, speakers


def _dialogue(turns: Sequence[Turn], stage: Stage) -> list[Piece]:
    opening, said, _ = _conversation(turns, stage)
    return [*opening, *joined(said, stage.choose("breaks", "dialogue.breaks")[0])]


def _next_turn(turns: Sequence[Turn], stage: Stage) -> list[Piece]:
    """The conversation up to the last question; then its reply is asked for."""
    opening, said, speakers = _conversation(turns, stage)
    prompt = fill_text(stage.choose("prompts", "next_turn.prompts")[0], first=speakers[0], second=speakers[1])
    history = joined(said[:-1], stage.choose("breaks", "dialogue.breaks")[0])
    return [*opening, *history, stage.gap, template(prompt + "\n"), *turns[-1].reply]


def _numbered(turns: Sequence[Turn], stage: Stage) -> list[Piece]:
    over_questions, over_answers = stage.choose("headings", "numbered.headings")
    before_question, before_answer = stage.choose("numbers", "numbered.numbers")
    asked = [[template(fill_text(before_question, number=str(turn.number))), *turn.ask] for turn in turns]
    replied = [[template(fill_text(before_answer, number=str(turn.number))), *turn.reply] for turn in turns]
    questions = [template(over_questions + "\n"), *joined(asked, "\n")]
    return [*questions, stage.gap, template(over_answers + "\n"), *joined(replied, "\n")]


def _worked_examples(turns: Sequence[Turn], stage: Stage) -> list[Piece]:
    """All pairs but the last are shown."""
    over_examples, over_last = stage.choose("headings", "worked_examples.headings")
    shown = [template(over_examples), stage.gap, *_labelled(turns[:-1], stage), stage.gap]
    return [*shown, template(over_last), stage.gap, *_labelled(turns[-1:], stage)]


def _questions_only(turns: Sequence[Turn], stage: Stage) -> list[Piece]:
    lead = stage.choose("leads", "questions_only.leads")[0]
    number, _ = stage.choose("numbers", "numbered.numbers")
    asked = [[template(fill_text(number, number=str(turn.number))), *turn.ask] for turn in turns]
    return [template(lead + "\n"), *joined(asked, "\n")]


BODIES: Final[Mapping[Mode, Callable[[Sequence[Turn], Stage], list[Piece]]]] = {
    "classic": _classic,
    "dialogue": _dialogue,
    "numbered": _numbered,
    "worked_examples": _worked_examples,
    "next_turn": _next_turn,
    "questions_only": _questions_only,
}
