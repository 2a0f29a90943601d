"""Check 5, degenerate text: loops, refusals, leaked tags, an answer in another language than its text.

What the text itself says may be quoted: a tag, or a phrase of refusal, that stands in the text is let pass.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path

from data_prep.checks.contract import Judge
from data_prep.checks.grounding import grounding
from data_prep.checks.languages import fold, is_unspaced, languages, units
from data_prep.language import likeliest
from data_prep.records import AugmentedText, Pair
from data_prep.settings import CheckSettings
from data_prep.synthesis.wire import CONCLUSION, THINK_LINE, split_question

# Words in a row that are compared, and the shortest text that is judged by its repetitions [words, or characters of a
# script without spaces].  Sums such as "2 + 2 = 4" repeat less than that.
NGRAM, SHORTEST = 4, 24
# One letter in a row; marks are left alone, they draw blanks and rules.
_LETTERS = re.compile(r"([^\W\d_])\1{11,}")
_TAGS = re.compile(
    r"<\\*/?(?:CON|QUE|ANS|END)>|<\|[\w ./-]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk)>|\[/?(?:INST|CONTEXT)\]|<</?SYS>>"
    r"|</?think(?:ing)?>|<(?:start|end)_of_turn>|^#{2,4} ?(?:Instruction|Response|Input|Output):?[ \t]*$"
    r"|^(?:Human|User|Assistant|Question|Answer|System): ",
    re.MULTILINE | re.IGNORECASE,
)
# Of the same language for our purpose: a classifier takes the one for the other.
_ALIKE = ({"zh", "wuu", "yue"}, {"no", "nn", "da"}, {"hr", "sr", "bs", "sh"}, {"id", "ms"}, {"pt", "gl"})
_KIN = {code: min(group) for group in _ALIKE for code in group}
# A language that the classifier gives the text more than this is one of its languages.
_PRESENT = 0.1
# Seen by the classifier of a text, of an answer [characters].
_SEEN = 1000


def judge(settings: CheckSettings, chains_path: Path) -> Judge:
    """Reasons: leaked_tag (control tags, chat markers, a doubled "Let's think" or "Therefore, the answer is"),
    refusal, repeated_word, repeated_ngrams (of the question or the answer), other_language.

    The language is that of the answer only, and only where it has `min_language_letters`, the classifier is sure of
    both languages, and the answer is not made of the text's own words: a question may well ask for a quotation.
    """

    def reason(pair: Pair, text: AugmentedText) -> str | None:
        if _has_leaked_tag(pair, text.text):
            return "leaked_tag"
        if _refuses(pair.answer, text.text):
            return "refusal"
        for part in (split_question(pair.question)[0], pair.answer):
            found = units(part)
            if longest_run(found) > settings.max_word_run or _LETTERS.search(fold(part)):
                return "repeated_word"
            if repetition(found) > settings.max_repetition:
                return "repeated_ngrams"
        return "other_language" if _is_of_other_language(pair.answer, text.text, settings) else None

    return reason


def repetition(found: list[str]) -> float:
    """Share of the n-grams of some units that are there before already; 0 for fewer units than `SHORTEST`."""
    if len(found) < SHORTEST:
        return 0.0
    grams = [tuple(found[place : place + NGRAM]) for place in range(len(found) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams)


def longest_run(found: list[str]) -> int:
    """How often one word of letters follows itself at most, itself counted."""
    return max((len(list(group)) for unit, group in groupby(found) if unit.isalpha()), default=0)


def _has_leaked_tag(pair: Pair, text: str) -> bool:
    if any(tag[0] not in text for part in (pair.question, pair.answer) for tag in _TAGS.finditer(part)):
        return True
    doubled = pair.question.count(THINK_LINE) > 1 or pair.answer.count(CONCLUSION) > 1
    return doubled or (THINK_LINE in pair.answer and THINK_LINE not in text)


def _refuses(answer: str, text: str) -> bool:
    found = [phrase[0] for phrase in _refusals().finditer(fold(answer))]
    return bool(found) and not all(phrase in fold(text) for phrase in found)


@cache
def _refusals() -> re.Pattern[str]:
    """The phrases of all languages, at word ends where words have ends."""
    phrases = [
        re.escape(phrase) if is_unspaced(phrase[-1]) else re.escape(phrase) + r"\b"
        for language in languages().values()
        for phrase in language.refusals
    ]
    return re.compile("|".join(phrases))


def _is_of_other_language(answer: str, text: str, settings: CheckSettings) -> bool:
    # A character of Chinese says about as much as three letters.
    if 3 * len(answer) < settings.min_language_letters:
        return False
    letters = sum(3 if is_unspaced(letter) else letter.isalpha() for letter in answer)
    if letters < settings.min_language_letters or grounding(answer, text) >= settings.min_grounding:
        return False
    known, (own, surety) = _languages_of(text[:_SEEN]), _first(_languages_of(answer[:_SEEN]))
    return min(surety, _first(known)[1]) >= settings.min_language_confidence and known.get(own, 0.0) < _PRESENT


def _first(found: dict[str, float]) -> tuple[str, float]:
    return max(found.items(), key=lambda item: item[1], default=("", 0.0))


@lru_cache(maxsize=8)  # a text is asked about once for each of its pairs
def _languages_of(text: str) -> dict[str, float]:
    """The likeliest languages and the classifier's surety of each; kin counts as one."""
    found: dict[str, float] = {}
    for code, surety in likeliest(text, 3):
        found[_KIN.get(code, code)] = found.get(_KIN.get(code, code), 0.0) + surety
    return found
