"""Check 4, grounding: an answer's content words stand in its text, and it says more than its question."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from data_prep.checks.contract import Judge
from data_prep.checks.duplicates import normalise
from data_prep.records import AugmentedText, Pair
from data_prep.settings import CheckSettings

# Words that say nothing about a text: English articles, pronouns, prepositions, auxiliaries.
_WORDS = """
a about after all also am an and any are as at be because been before being both but by can could did do does doing
during each for from had has have having he her here hers him his how i if in into is it its just may me might more
most must my no nor not of on once only or other our out over own same shall she should so some such than that the
their them then there these they this those through to too under until up very was we were what when where which
while who whom why will with would you your
"""
FUNCTION_WORDS = frozenset(_WORDS.split())
VERDICTS = frozenset({"yes", "no", "true", "false", "maybe", "not known", "unknown"})
_NUMBER = re.compile(r"[^\w]*\d[\d\s.,:/%-]*[^\w]*")


def judge(settings: CheckSettings, chains_path: Path) -> Judge:
    """Reasons: answer_is_question, not_grounded (less than `min_grounding` of the content words).

    Verdicts (yes, no, ...), bare numbers, multiple choice and chains of thought are not asked to
    be grounded; nor is an answer without content words.
    """

    def reason(pair: Pair, text: AugmentedText) -> str | None:
        if normalise(pair.answer) == normalise(pair.question):
            return "answer_is_question"
        if pair.options or pair.rationale or normalise(pair.answer) in VERDICTS or _NUMBER.fullmatch(pair.answer):
            return None
        return "not_grounded" if grounding(pair.answer, text.text) < settings.min_grounding else None

    return reason


def grounding(answer: str, text: str) -> float:
    """Share of the distinct content words of `answer` that stand in `text`; 1 when it has none."""
    words = content_words(answer)
    return len(words & content_words(text)) / len(words) if words else 1.0


def content_words(text: str) -> set[str]:
    """Distinct words, case-folded, without function words."""
    return set(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())) - FUNCTION_WORDS
