"""The styles of a language and mode: read from YAML, checked, and filled in with spans."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from data_prep.errors import UserError
from data_prep.records import Pair, SpanClass
from data_prep.synthesis.wire import split_question

# A piece of rendered text and the class it belongs to.
Part = tuple[SpanClass, str]

# Fields each list of styles must have, each exactly once.
FIELDS: dict[str, tuple[str, ...]] = {
    "delimiters": (),
    "separators": (),
    "texts": ("text",),
    "lead_ins": (),
    "option_lines": ("option",),
    "free": ("question", "answer"),
    "options": ("question", "options", "answer"),
    "rationale": ("question", "answer"),
    "options_rationale": ("question", "options", "answer"),
}
OPTIONAL_FIELDS = {"option_lines": ("letter", "number")}

_FIELD = re.compile(r"\{(\w+)\}")
_CLASSES: dict[str, SpanClass] = {"text": "text", "question": "question", "options": "question", "answer": "answer"}


@dataclass(frozen=True, slots=True)
class Styles:
    """The lists of styles of one file, under the names of `FIELDS`; `name` is language/mode@version."""

    name: str
    lists: Mapping[str, tuple[str, ...]]


def load_styles(language: str, mode: str) -> Styles:
    """The styles of data_prep/templates/LANGUAGE/MODE.yaml.

    Raises:
        UserError: no such file, or a style in it lacks a field, has one twice, or one of another name.
    """
    path = Path(__file__).parent / language / f"{mode}.yaml"
    if not path.is_file():
        found = ", ".join(sorted(f"{file.parent.name}/{file.stem}" for file in Path(__file__).parent.glob("*/*.yaml")))
        raise UserError("templates", f"there are none for language '{language}', mode '{mode}'", f"there are {found}")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    lists = {}
    for name in FIELDS:
        styles = content.get(name)
        if not isinstance(styles, list) or not styles:
            raise UserError(path, f"expected a list of styles under '{name}'", "add it")
        for number, style in enumerate(styles, 1):
            _check_style(f"{path}: {name}, style {number}", name, style)
        lists[name] = tuple(styles)
    return Styles(f"{language}/{mode}@{content.get('version')}", lists)


def _check_style(where: str, name: str, style: object) -> None:
    if not isinstance(style, str):
        raise UserError(where, f"expected a string, found {type(style).__name__}", "quote it")
    found = _FIELD.findall(style)
    wrong = set(found) - set(FIELDS[name]) - set(OPTIONAL_FIELDS.get(name, ()))
    if wrong or any(found.count(field) != 1 for field in FIELDS[name]):
        wanted = ", ".join(f"{{{field}}}" for field in FIELDS[name]) or "no field"
        raise UserError(where, f"expected {wanted} once and nothing else in braces, found {found}", "mend the style")


def pair_kind(pair: Pair) -> str:
    """The list of styles that fits a pair."""
    if pair.options:
        return "options_rationale" if pair.rationale else "options"
    return "rationale" if pair.rationale else "free"


def fill(style: str, values: Mapping[str, str]) -> Iterator[Part]:
    """The parts of a filled style.  Values are put in once: a `{answer}` inside a value stays as it is."""
    for place, piece in enumerate(_FIELD.split(style)):
        if place % 2 == 0:
            yield "template", piece
        else:
            yield _CLASSES[piece], values[piece]


def fill_pair(style: str, option_line: str, pair: Pair) -> Iterator[Part]:
    """The parts of a pair in a style; the answer stands in it as the pair has it."""
    lines = [
        "".join(
            {"option": option, "letter": chr(ord("A") + place % 26), "number": str(place + 1)}[piece]
            if odd % 2
            else piece
            for odd, piece in enumerate(_FIELD.split(option_line))
        )
        for place, option in enumerate(pair.options)
    ]
    stem, _ = split_question(pair.question)
    values = {"question": stem or pair.question, "options": "\n".join(lines), "answer": pair.answer}
    yield from fill(style, values)
