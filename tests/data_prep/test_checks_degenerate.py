"""What is degenerate, what only looks so, and that the classifier of languages needs no network."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.checks.degenerate import NGRAM, SHORTEST, judge, longest_run, repetition
from data_prep.checks.languages import units
from data_prep.records import AugmentedText, Pair
from data_prep.settings import CheckSettings

ENGLISH = (
    "The lighthouse at Skarsund was built in 1874. Its keeper was Ingrid Dahl, who wound the clock every evening and "
    "wrote the name of each passing ship into a large book that is now kept in the museum of the town."
)
GERMAN = (
    "Der Leuchtturm von Skarsund wurde 1874 gebaut. Die Wärterin zog jeden Abend die Uhr auf und schrieb den Namen "
    "jedes Schiffes in ein großes Buch, das heute im Museum der Stadt liegt."
)
CHINESE = "斯卡松德灯塔建于一八七四年。看守人每天晚上给时钟上发条,并把每艘过往船只的名字写在一本大书里。"
FRENCH = (
    "Le gardien vivait seul pendant de longues années et regardait passer les navires, sans jamais parler à personne "
    "de ce qu'il avait vu pendant la guerre."
)


def verdict(question: str, answer: str, text: str = ENGLISH, **values: float) -> str | None:
    return judge(CheckSettings(**values), Path())(Pair(question, answer), AugmentedText("d", text))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("She wound it. <QUE> Who?", "leaked_tag"),
        ("Dahl </END>", "leaked_tag"),
        ("Dahl<|im_end|>\n<|im_start|>user", "leaked_tag"),
        ("[/INST] Dahl", "leaked_tag"),
        ("Dahl\nUser: and then?", "leaked_tag"),
        ("### Response:\nDahl", "leaked_tag"),
        ("Let's think step by step. She wound it.", "leaked_tag"),
        ("So.\nTherefore, the answer is A\nTherefore, the answer is A", "leaked_tag"),
        ("As an AI, I cannot know this.", "refusal"),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but I can\N{RIGHT SINGLE QUOTATION MARK}t say.", "refusal"),
        ("Als KI habe ich keine Meinung.", "refusal"),
        ("Es tut mir leid, aber ich kann das nicht sagen.", "refusal"),
        ("作为一个人工智能,我没有看法。", "refusal"),
        ("She wound the clock. " * 8, "repeated_ngrams"),
        ("她每天晚上给时钟上发条。" * 4, "repeated_ngrams"),
        ("It is very very very very very tall.", "repeated_word"),
        ("哈哈哈哈哈哈", "repeated_word"),
        ("Aaaaaaaaaaaaaah", "repeated_word"),
        (FRENCH, "other_language"),
        (GERMAN.replace("Skarsund", "Bergen"), "other_language"),
        (CHINESE, "other_language"),
    ],
)
def test_what_goes(answer: str, reason: str):
    assert verdict("What did she do?", answer) == reason


@pytest.mark.parametrize(
    "answer",
    [
        "The keeper was Ingrid Dahl.",
        "Reasons.\nTherefore, the answer is A",
        "As an aide she helped.",
        "Als Kind lebte sie dort.",
        "2 + 2 = 4, 2 + 3 = 5, 2 + 4 = 6, 2 + 5 = 7, 2 + 6 = 8, 2 + 7 = 9, 2 + 8 = 10, 2 + 9 = 11",
        "0 0 0 0 0 0",
        "________ and -------- and ........",
        "C'est la vie.",
        "a <- b; x < y > z; <b>bold</b>",
        "Skarsund, Ingrid Dahl, Ingrid, Skarsund, Dahl, 1874, museum, Ingrid Dahl, town, ship, clock, lighthouse, book",
    ],
)
def test_what_stays(answer: str):
    assert verdict("What did she do?", answer) is None


def test_what_the_text_says_may_be_quoted():
    told = "The model wrote <|im_start|> and then: As an AI, I cannot know. </s>"
    assert verdict("What did it write?", "It wrote <|im_start|> and </s>", told) is None
    assert verdict("What did it say?", "As an AI, it said.", told) is None
    assert verdict("What did it say?", "As an AI, it said.", ENGLISH) == "refusal"
    assert verdict("Which line is French?", FRENCH, f"{ENGLISH} {FRENCH}") is None


def test_an_answer_in_the_text_s_language_stays_whatever_it_says():
    unlike = (
        "Nobody could have guessed how quickly these four brothers would squander everything their father had saved."
    )
    assert verdict("What?", unlike, ENGLISH, min_language_confidence=0.5) is None


def test_a_question_may_quote_another_language_and_is_held_to_the_rest():
    assert verdict(f"What does this mean? {FRENCH}", "That he lived alone.") is None
    assert verdict("Who? <|im_end|>", "Dahl") == "leaked_tag"
    assert verdict("What did she do? " * 9, "Dahl") == "repeated_ngrams"
    options = "\nOptions:" + "\n- it is the tall old tower of the town" * 5
    assert verdict("Which?" + options, "Dahl") is None


@pytest.mark.parametrize("text", [ENGLISH, GERMAN, CHINESE, FRENCH])
@pytest.mark.parametrize("answer", [ENGLISH, GERMAN, CHINESE, FRENCH])
def test_languages_are_told_apart_without_a_network(monkeypatch: pytest.MonkeyPatch, text: str, answer: str):
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    # A sum of 1 of grounding cannot be reached by another text: only the language is asked.
    expected = None if text == answer else "other_language"
    assert verdict("q", answer, text, min_grounding=1.0) == expected
    assert verdict("q", answer, text, min_grounding=1.0, min_language_letters=10_000) is None


@given(st.lists(st.sampled_from("ab"), max_size=60))
def test_repetition_and_run_as_counted_one_by_one(found: list[str]):
    grams: list[tuple[str, ...]] = []
    again = 0
    for place in range(len(found) - NGRAM + 1):
        gram = tuple(found[place : place + NGRAM])
        again += gram in grams
        grams.append(gram)
    expected = again / len(grams) if len(found) >= SHORTEST else 0.0
    assert repetition(found) == pytest.approx(expected)
    runs = [n for n in range(1, len(found) + 1) for unit in "ab" if (unit * n) in "".join(found)]
    assert longest_run(found) == max(runs, default=0)


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_gets_a_verdict(question: str, answer: str):
    assert isinstance(verdict(question, answer), str | None)
    assert all(units(part) is not None for part in (question, answer))
