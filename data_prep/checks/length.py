"""Check 2, length: questions and answers within bounds, in characters."""

from __future__ import annotations

from pathlib import Path

from data_prep.checks.contract import Judge
from data_prep.records import AugmentedText, Pair
from data_prep.settings import CheckSettings


def judge(settings: CheckSettings, chains_path: Path) -> Judge:
    """Reasons: question_too_long, answer_too_short, answer_too_long."""

    def reason(pair: Pair, text: AugmentedText) -> str | None:
        if len(pair.question) > settings.max_question_characters:
            return "question_too_long"
        if len(pair.answer) < settings.min_answer_characters:
            return "answer_too_short"
        if len(pair.answer) > settings.max_answer_characters:
            return "answer_too_long"
        return None

    return reason
