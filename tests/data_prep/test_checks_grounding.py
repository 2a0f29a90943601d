"""Grounding in English, German and Chinese, against pairs written by hand."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data_prep.checks.grounding import _content, _numbers, grounding, judge
from data_prep.checks.languages import fold, language_of, languages, units
from data_prep.records import AugmentedText, Pair
from data_prep.settings import CheckSettings

CASES = yaml.safe_load(Path(__file__).with_name("grounding_pairs.yaml").read_text(encoding="utf-8"))
ANSWERS = [(case, row) for case in CASES for row in case["answers"]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["language"])
def test_the_language_of_a_text_is_told_by_its_words(case: dict):
    assert language_of(units(case["text"])).code == case["language"]


@pytest.mark.parametrize(("case", "row"), ANSWERS, ids=lambda value: str(value.get("answer", "")))
def test_share_of_an_answer_s_content_in_its_text(case: dict, row: dict):
    assert grounding(row["answer"], case["text"]) == pytest.approx(row["share"], abs=0.01)


def test_numbers_have_one_form_whatever_the_language():
    same = ["1234567.5", "1,234,567.5", "1.234.567,5", "1 234 567,5", "1'234'567.5"]
    assert {_numbers(number) for number in same} == {"1234567.5"}
    assert (
        _numbers("on 12.05.1999 at 3,5 of 1.234 or 1,2,3 in v1.2.3")
        == "on 12.05.1999 at 3.5 of 1234 or 1,2,3 in v1.2.3"
    )


def test_german_endings_are_taken_off_and_four_letters_stay():
    german = languages()["de"]
    for forms in (("Turm", "Turms", "Turme", "Türmen"), ("Kirche", "Kirchen"), ("Haus", "Hauses", "Häusern", "Häuser")):
        assert len({frozenset(_content(fold(form), german, for_text=False)) for form in forms}) == 1, forms
    assert _content("rose", german, for_text=False) == {"rose"}  # ros would be other words too


@pytest.mark.parametrize("answer", ["Ja.", "nein", "Nicht bekannt", "是的。", "不", "1,900", "1874年3月5日", "12.500"])
def test_verdicts_and_bare_numbers_of_any_language_are_not_asked_to_be_grounded(answer: str):
    text = AugmentedText("d", CASES[1]["text"])
    assert judge(CheckSettings(min_grounding=1.0), Path())(Pair("q", answer), text) is None


def test_an_answer_without_words_is_its_question_only_if_they_are_equal():
    reason = judge(CheckSettings(), Path())
    assert reason(Pair("Ist er hoch?", "ist er HOCH"), AugmentedText("d", "Er ist hoch.")) == "answer_is_question"


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_text_is_grounded_in_itself_and_in_more_of_it(text: str, more: str):
    assert grounding(text, text) == 1.0
    assert 0.0 <= grounding(text, more) <= 1.0


def test_parts_of_a_chinese_text_are_grounded_in_it():
    text = next(case["text"] for case in CASES if case["language"] == "zh")
    clauses = [clause for clause in text.replace("。", ",").split(",") if clause and not any(map(str.isdigit, clause))]
    for start, end in product(range(4), (5, 7, 9)):
        for clause in clauses:
            assert grounding(clause[start:end], text) >= 0.7  # an edge may cut a function word in two
