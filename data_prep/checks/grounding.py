"""Check 4, grounding: an answer's content words stand in its text, and it says more than its question.

What is compared, by the language of the text (`languages/`):
- Words with spaces between them: case-folded, without the function words of the language.
- German: words count as equal when they are so after one inflectional ending (-em -en -ern -er -es -e -n -s) is
  taken off, as long as four letters stay, and after umlauts are unfolded: Turm, Turms, Türme, Türmen.  Compounds are
  not taken apart, and strong verbs not led back: Leuchtturm is not Turm, ging is not gehen.
- Scripts without spaces: pairs of neighbouring characters, within runs cut at function words.  A run of one is itself.
- Numbers: groups of thousands and decimal marks made equal: 1,900, 1.900 and 1 900 are 1900; 3,5 is 3.5.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path

from data_prep.checks.contract import Judge
from data_prep.checks.duplicates import normalise
from data_prep.checks.languages import UNSPACED, Language, fold, language_of, languages, units
from data_prep.records import AugmentedText, Pair
from data_prep.settings import CheckSettings

# Digits and what stands between and around them; the signs of Chinese dates and per cents as well.
_BARE_NUMBER = re.compile(r"[^\w]*\d[\d\s.,:/%'-]*(?:[年月日号点时分秒][\d\s.,:/%'-]*)*[^\w]*")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:([.,'\s])\d{3})(?:\1\d{3})*(?![\d])")
_DECIMAL = re.compile(r"(?<![\d.,])(\d+)[.,](\d{1,2}|\d{4,})(?![\d.,]*\d)")
_WORD = re.compile(rf"\d+\.\d+|[^\W{UNSPACED}]+")
_RUN = re.compile(rf"[{UNSPACED}]+")
# The start of a text tells its language [characters].
_TELLING = 2000
_ENDING = re.compile(r"(?<=\w{4})(?:ern|em|en|er|es|e|n|s)$")
_UMLAUTS = str.maketrans("äöü", "aou")


def judge(settings: CheckSettings, chains_path: Path) -> Judge:
    """Reasons: answer_is_question, not_grounded (less than `min_grounding` of the content words).

    Verdicts (yes, no, ...), bare numbers, multiple choice and chains of thought are not asked to
    be grounded; nor is an answer without content words.
    """

    def reason(pair: Pair, text: AugmentedText) -> str | None:
        if normalise(pair.answer) == normalise(pair.question):
            return "answer_is_question"
        if not can_be_grounded(pair):
            return None
        return "not_grounded" if grounding(pair.answer, text.text) < settings.min_grounding else None

    return reason


def can_be_grounded(pair: Pair) -> bool:
    """Whether the answer is such that its words should stand in the text."""
    if pair.options or pair.rationale or _BARE_NUMBER.fullmatch(fold(pair.answer)):
        return False
    return " ".join(units(pair.answer)) not in _verdicts()


@cache
def _verdicts() -> frozenset[str]:
    return frozenset(verdict for language in languages().values() for verdict in language.verdicts)


def grounding(answer: str, text: str) -> float:
    """Share of the distinct content of `answer` that stands in `text`; 1 when it has none."""
    language, known = _content_of_text(text)
    content = _content(fold(answer), language, for_text=False)
    return len(content & known) / len(content) if content else 1.0


@lru_cache(maxsize=4)  # a text is asked about once for each of its pairs
def _content_of_text(text: str) -> tuple[Language, frozenset[str]]:
    language = language_of(units(text[:_TELLING]))
    return language, frozenset(_content(fold(text), language, for_text=True))


def _content(folded: str, language: Language, for_text: bool) -> set[str]:
    """What is compared.  Of the text more: single characters, so that a run of one finds itself in a longer run, and
    numbers as they stand too, as a space between two numbers is no mark of thousands."""
    numbered = _numbers(folded)
    found = set(_WORD.findall(numbered))
    if for_text:
        found.update(re.findall(r"\d+", folded))
    found -= language.function_words
    if language.code == "de":
        found = set(map(_german_stem, found))
    for run in _RUN.findall(numbered):
        found.update(_character_pairs(run))
        found.update(run if for_text else ())
    return found


def _numbers(folded: str) -> str:
    """Numbers in one form, without a mark between thousands and with a point before decimals.

    A mark before three digits is of thousands, in every language: 1.234 is read as 1234.
    """
    grouped = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match[0]), folded)
    return _DECIMAL.sub(r"\1.\2", grouped)


@lru_cache(maxsize=1 << 16)
def _german_stem(word: str) -> str:
    return _ENDING.sub("", word.translate(_UMLAUTS))


def _character_pairs(run: str) -> list[str]:
    pieces = [piece for piece in _function_words_of_runs().split(run) if piece]
    return [first + second for piece in pieces for first, second in pairwise(piece)] + [
        piece for piece in pieces if len(piece) == 1
    ]


@cache
def _function_words_of_runs() -> re.Pattern[str]:
    """The longest first: a word is not cut by a shorter one inside it."""
    words = sorted(languages()["zh"].function_words, key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, words)))
