"""Options of a multiple-choice question: their order, what each is called, and how the answer names one (pure).

Options are shuffled with a generator of their own, so that the right one's place is uniform.  Some are not: an option
that speaks of the others' place stays in its own, and where the pair itself names an option by letter or number all
keep their order, and are listed under the letters or numbers that the pair means.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from data_prep.draws import draw
from data_prep.records import Pair
from data_prep.synthesis.wire import CONCLUSION
from data_prep.templates.draws import Draws
from data_prep.templates.parts import fill_text
from data_prep.templates.styles import Entry, Styles

# How the answer to a multiple-choice question is given: the option's words, its name, or the whole line.
FORMS = ("words", "name", "line")

Naming = Literal["letter", "number", "own"]

_OWN_NAME = re.compile(r"[(（]?([A-Za-z]|\d{1,2})(?:[).:]\s|[）、：])\s*\S")  # noqa: RUF001
_BARE_NAME = re.compile(r"[\[(]?([A-Za-z]|\d{1,2})[\])]?[.:]?")
_IN_BRACKETS = re.compile(r"\(([A-Za-z]|\d{1,2})\)")


@dataclass(frozen=True, slots=True)
class Listed:
    """The options of a question as they are shown, and its answer.

    `in_order` says that they were not shuffled, `added` that one more was put in that is never right.
    """

    block: str
    answer: str
    in_order: bool
    added: bool


def list_options(pair: Pair, styles: Styles, text_draws: Draws, pair_draws: Draws, unanswerable: float) -> Listed:
    """The options of `pair` in a style drawn for its text, in an order drawn for the pair.

    Args:
        unanswerable: the share of questions that get one more option, of those that can have one.
    """
    naming = named_by(pair, styles)
    wanted = pair_draws.below("unanswerable", unanswerable) and _leaves_no_doubt(pair, styles)
    extra = extra_option(pair, styles, pair_draws) if wanted else ""
    options = pair.options
    if naming:
        options = (*options, extra) if extra else options  # at the end, or the pair's names would move
    else:
        options = (extra, *options) if extra else options  # at the start, so that "above" stays below all
        kept = {place for place, option in enumerate(options) if _speaks_of_places(option, styles)}
        options = tuple(options[place] for place in shuffled(len(options), kept, pair_draws))
    line, name = _line_style(styles, naming, text_draws)
    lines = [fill_text(line, option=option, **_names(place)) for place, option in enumerate(options)]
    form = text_draws.choose("answer_form", FORMS)
    answer = pair.answer
    place = _place_of(answer, options)
    if name and place is not None and not pair.rationale and not naming:
        answer = {
            "words": answer,
            "name": fill_text(name, **_names(place)),
            "line": fill_text(line, option=answer, **_names(place)),
        }[form]
    return Listed("\n".join(lines), answer, bool(naming), bool(extra))


def shuffled(count: int, kept: set[int], draws: Draws) -> list[int]:
    """A uniform order of range(count) in which the places in `kept` stay where they are."""
    free = [place for place in range(count) if place not in kept]
    keys = {place: draw(draws.seed, draws.identifier, f"option_order:{place}") for place in free}
    order = iter(sorted(free, key=keys.__getitem__))
    return [place if place in kept else next(order) for place in range(count)]


def named_by(pair: Pair, styles: Styles) -> Naming | None:
    """How the pair itself names its options, if it does: by letters or numbers, or within the options ("own").

    An answer or a conclusion that is an option's own words names none.
    """
    own = [match.group(1) if (match := _OWN_NAME.match(option)) else "" for option in pair.options]
    if any(own == [_names(place)[kind] for place in range(len(own))] for kind in _names(0)):
        return "own"
    final = _final(pair)
    if _place_of(final, pair.options) is None and _place_of(final.rstrip("."), pair.options) is None:
        match = _BARE_NAME.fullmatch(final) or _OWN_NAME.match(final)
        if match:
            return "number" if match.group(1).isdigit() else "letter"
    pattern = _name_pattern(styles.lists["option_lines.name_words"])
    for said in (pair.answer if pair.rationale else "", *pair.options):
        match = pattern.search(said) or (_IN_BRACKETS.search(said) if said is pair.answer else None)
        if match:
            return "number" if match.group(1).isdigit() else "letter"
    return None


def extra_option(pair: Pair, styles: Styles, draws: Draws) -> str:
    """A wording for "none is right" that no option and not the answer has; empty where each is taken."""
    taken = {option.strip().casefold() for option in (*pair.options, pair.answer)}
    said = pair.answer.casefold()
    free = [
        wording
        for (wording,) in styles.lists["option_lines.unanswerable"]
        if wording.casefold() not in taken and wording.casefold() not in said
    ]
    return draws.choose("unanswerable_wording", free) if free else ""


def right_place(pair: Pair) -> int | None:
    """The place of the option that the answer, or its conclusion, says or names; None where it is none of them."""
    final = _final(pair)
    for said in (final, final.rstrip(".")):
        if (place := _place_of(said, pair.options)) is not None:
            return place
    bare, own = _BARE_NAME.fullmatch(final), _OWN_NAME.match(final)
    match = bare or own
    if match is None:
        return None
    name = match.group(1).upper()
    place = next((place for place in range(len(pair.options)) if name in _names(place).values()), None)
    if place is None or bare:
        return place
    words = final[match.end() - 1 :]
    return place if place in (_place_of(words, pair.options), _place_of(words.rstrip("."), pair.options)) else None


def _leaves_no_doubt(pair: Pair, styles: Styles) -> bool:
    """One of the options is right, and it does not itself say that none is, or speak of the others: one more option
    would be right where the answer is none of them, and wrong the answer "all of the above"."""
    place = right_place(pair)
    if place is None:
        return False
    right = pair.options[place]
    wordings = (wording.casefold() for (wording,) in styles.lists["option_lines.unanswerable"])
    return not _speaks_of_places(right, styles) and not any(wording in right.casefold() for wording in wordings)


def _final(pair: Pair) -> str:
    return pair.answer.rpartition(CONCLUSION)[2].strip() if pair.rationale else pair.answer.strip()


def _place_of(answer: str, options: Sequence[str]) -> int | None:
    wanted = answer.strip().casefold()
    return next((place for place, option in enumerate(options) if option.strip().casefold() == wanted), None)


def _line_style(styles: Styles, naming: Naming | None, draws: Draws) -> Entry:
    """A line and what names it; where the pair names options, one that names them in that way."""
    lines = styles.lists["option_lines.lines"]
    if naming is None:
        return draws.choose("option_lines", lines)
    wanted = {"letter": ("{letter}", "{lower}"), "number": ("{number}",), "own": ()}[naming]
    fitting = [row for row in lines if (any(field in row[0] for field in wanted) if wanted else not row[1])]
    return draws.choose(f"option_lines_{naming}", fitting or lines)


def _names(place: int) -> dict[str, str]:
    """What a place in a list is called: A ... Z, AA, AB ...; 1, 2 ..."""
    letters, rest = "", place + 1
    while rest:
        rest, digit = divmod(rest - 1, 26)
        letters = chr(ord("A") + digit) + letters
    return {"letter": letters, "lower": letters.lower(), "number": str(place + 1)}


def _speaks_of_places(option: str, styles: Styles) -> bool:
    return bool(_word_pattern(styles.lists["option_lines.place_words"]).search(option))


@cache
def _word_pattern(words: tuple[Entry, ...]) -> re.Pattern[str]:
    """Any of the words, whole; Latin letters around it would make it another word."""
    alternatives = "|".join(re.escape(word) for (word,) in words)
    return re.compile(rf"(?<![A-Za-zÀ-ÿ])(?:{alternatives})(?![A-Za-zÀ-ÿ])", re.IGNORECASE)


@cache
def _name_pattern(words: tuple[Entry, ...]) -> re.Pattern[str]:
    """Any of the words before a capital letter or a number of its own."""
    alternatives = "|".join(re.escape(word) for (word,) in words)
    return re.compile(rf"(?<![A-Za-zÀ-ÿ])(?i:{alternatives})\s*[\[(]?([A-Z]|\d{{1,2}})(?![A-Za-zÀ-ÿ0-9'])")
