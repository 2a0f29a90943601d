"""Check 1, form: a question and an answer, and an answer that is one of the options."""

from __future__ import annotations

from pathlib import Path

from data_prep.checks.contract import Judge
from data_prep.records import AugmentedText, Pair
from data_prep.settings import CheckSettings


def judge(settings: CheckSettings, chains_path: Path) -> Judge:
    """Reasons: empty_question, empty_answer, answer_not_an_option (multiple choice without rationale)."""

    def reason(pair: Pair, text: AugmentedText) -> str | None:
        if not pair.question.strip():
            return "empty_question"
        if not pair.answer.strip():
            return "empty_answer"
        options = {option.strip().casefold() for option in pair.options}
        if options and not pair.rationale and pair.answer.strip().casefold() not in options:
            return "answer_not_an_option"
        return None

    return reason
