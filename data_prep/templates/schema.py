"""What a language's folder holds: its files, the lists in each, and the fields of an entry.

A list is a sequence of entries.  An entry is a string, or a list of strings where it has several parts (how a question
is asked and how it is replied, say); each part has fields in braces that it must have once and some that it may have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

FIELD: Final = re.compile(r"\{(\w+)\}")
# A question and an answer bring their own mark; one after them would be a second.
_MARK_AFTER: Final = re.compile(r"\{(?:question|answer)\}[?!.,;:。？！，；：]")  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class Part:
    """One string of an entry: fields it must have, each once, and fields it may have."""

    must: tuple[str, ...] = ()
    may: tuple[str, ...] = ()

    def fault(self, text: str) -> str:
        """What is wrong with a string in this place, or nothing."""
        found = FIELD.findall(text)
        unknown = sorted(set(found) - {*self.must, *self.may})
        if unknown:
            legal = ", ".join(f"{{{name}}}" for name in (*self.must, *self.may)) or "no field"
            return f"the field {{{unknown[0]}}} is unknown here, legal: {legal}"
        for name in self.must:
            if found.count(name) != 1:
                return f"expected {{{name}}} once, found it {found.count(name)} times"
        if match := _MARK_AFTER.search(text):
            return f"a mark after '{match.group()[:-1]}', which brings its own"
        return ""


@dataclass(frozen=True, slots=True)
class Entries:
    """A list: the parts of each of its entries."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """A number from 0 to 1."""


@dataclass(frozen=True, slots=True)
class AlwaysFalse:
    """A statement about the file that a user reads and the program relies on."""


Rule = Entries | Share | AlwaysFalse


def _one(must: str = "", may: str = "") -> Entries:
    return Entries((Part(tuple(must.split()), tuple(may.split())),))


def _two(first: Part, second: Part) -> Entries:
    return Entries((first, second))


_NUMBER = Part(may=("number",))
_PLAIN = Part()
_ANSWER = Part(("answer",))
_FREE = _two(Part(("question",)), _ANSWER)
_CHOICE = _two(Part(("question", "options")), _ANSWER)
_PLACES = ("letter", "lower", "number")

FILES: Final[Mapping[str, Mapping[str, Rule]]] = {
    "free": {"anywhere": _FREE, "with_text": _FREE},
    "options": {"anywhere": _CHOICE, "with_text": _CHOICE},
    "rationale": {"anywhere": _FREE, "with_text": _FREE},
    "options_rationale": {"anywhere": _CHOICE, "with_text": _CHOICE},
    "texts": {"shown": Share(), "anywhere": _one("text"), "before_pairs": _one("text"), "after_pairs": _one("text")},
    "tasks": {"shown": Share(), "anywhere": _one(), "after_text": _one(), "before_text": _one()},
    "labels": {"labels": _two(_NUMBER, _NUMBER)},
    "spacing": {"delimiters": _one(), "gaps": _one(), "pairs": _two(_PLAIN, _PLAIN)},
    "option_lines": {
        "lines": _two(Part(("option",), _PLACES), Part(may=_PLACES)),
        "place_words": _one(),
        "name_words": _one(),
        "unanswerable": _one(),
    },
    "dialogue": {
        "speakers": _two(_PLAIN, _PLAIN),
        "turns": _one("speaker"),
        "breaks": _one(),
        "openings": _one(may="first second"),
        "openings_with_text": _one(may="first second"),
    },
    "numbered": {"headings": _two(_PLAIN, _PLAIN), "numbers": _two(_NUMBER, _NUMBER)},
    "worked_examples": {"headings": _two(_PLAIN, _PLAIN)},
    "next_turn": {"prompts": _one(may="first second")},
    "questions_only": {"answers": AlwaysFalse(), "leads": _one()},
}
