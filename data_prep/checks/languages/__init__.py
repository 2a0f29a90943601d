"""What the checks know of a language, a data file each: its function words, verdicts and refusals."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

# Scripts that set no space between words: Thai to Khmer, kana, Chinese characters.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNIT = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
_UNSPACED_CHARACTER = re.compile(rf"[{UNSPACED}]")
# So many units tell the language of a text.
_TELLING = 400


@dataclass(frozen=True, slots=True)
class Language:
    """A language: `code` is the file's name; everything is folded as `fold` folds."""

    code: str
    name: str
    function_words: frozenset[str]
    verdicts: frozenset[str]
    refusals: tuple[str, ...]


@cache
def languages() -> dict[str, Language]:
    """The languages by their codes, English first: it is taken where nothing tells."""
    paths = sorted(Path(__file__).parent.glob("*.yaml"), key=lambda path: (path.stem != "en", path.stem))
    return {path.stem: _read(path) for path in paths}


def _read(path: Path) -> Language:
    row = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Language(
        path.stem,
        row["name"],
        frozenset(fold(row["function_words"]).split()),
        frozenset(" ".join(units(verdict)) for verdict in row["verdicts"]),
        tuple(fold(refusal) for refusal in row["refusals"]),
    )


def fold(text: str) -> str:
    """Case, width, ligatures and the forms of apostrophes made equal (Unicode NFKC, then case folding)."""
    return unicodedata.normalize("NFKC", text).casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def units(text: str) -> list[str]:
    """The folded words of a text in their order; where a script sets no spaces, its characters."""
    return _UNIT.findall(fold(text))


def is_unspaced(unit: str) -> bool:
    """Whether a unit is a character of a script without spaces."""
    return unit >= UNSPACED[0] and bool(_UNSPACED_CHARACTER.match(unit))  # most are told by the first


def language_of(found: list[str]) -> Language:
    """The language of a text's units: Chinese where most are characters, else whose function words are the most.

    English where none is met; a language of which we have no file is taken for one of ours, which only means that
    none of its words is left out of a comparison.
    """
    known, found = languages(), found[:_TELLING]
    if 2 * sum(map(is_unspaced, found)) > len(found):
        return known["zh"]
    spaced = [language for language in known.values() if language.code != "zh"]
    return max(spaced, key=lambda language: sum(unit in language.function_words for unit in found))
