"""What a question asks for: about sixty categories, told by its wording, in English, German and Chinese.

The rules are data (categories.yaml), tried in their order; they are a reader's first guess, no measurement.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from data_prep.checks.languages import fold
from data_prep.records import Pair
from data_prep.synthesis.wire import split_question

OTHER = "other"


@dataclass(frozen=True, slots=True)
class Category:
    """A category matches by its question, its whole answer, or by having options; `asks` tells a model of it."""

    name: str
    asks: str
    question: re.Pattern[str] | None
    answer: re.Pattern[str] | None
    options: bool

    def matches(self, question: str, answer: str, options: Sequence[str]) -> bool:
        if self.question is not None and self.question.search(question):
            return True
        if self.answer is not None and self.answer.fullmatch(answer):
            return True
        return self.options and bool(options)


def category_of(pair: Pair) -> str:
    """The first category that matches the pair, else OTHER."""
    stem, options = split_question(pair.question)
    question, answer = fold(stem), fold(pair.answer).strip()
    options = pair.options or options
    return next((each.name for each in categories() if each.matches(question, answer, options)), OTHER)


@cache
def categories() -> tuple[Category, ...]:
    rows = yaml.safe_load(Path(__file__).with_name("categories.yaml").read_text(encoding="utf-8"))
    return tuple(_category(row) for row in rows)


def _category(row: dict[str, str | bool]) -> Category:
    spaced = [str(row[language]) for language in ("en", "de") if language in row]
    rules = [rf"(?<!\w)(?:{'|'.join(spaced)})"] if spaced else []
    rules += [str(row["zh"])] if "zh" in row else []
    question = re.compile("|".join(rules)) if rules else None
    answer = re.compile(str(row["answer"])) if "answer" in row else None
    return Category(str(row["name"]), str(row["asks"]), question, answer, bool(row.get("options", False)))
