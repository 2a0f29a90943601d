# ruff: noqa: RUF001 (Chinese has its own marks)
"""The rules engine: pairs that the text answers, in three languages, whatever the text is."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.records import Pair
from data_prep.synthesis.engines.contract import Completion, Request
from data_prep.synthesis.engines.mining import GAP, LANGUAGES, load_phrases, mine, told_language
from data_prep.synthesis.engines.rules import RulesEngine
from data_prep.synthesis.wire import pairs_part, parse

ENGLISH = (
    "The mitochondrion\n\n"
    "A mitochondrion is an organelle that makes most of the energy of a cell. It keeps its own DNA because it was once "
    "a free bacterium. Cells of the heart need much energy. Therefore, they hold thousands of mitochondria. However, "
    "red blood cells hold none at all. In other words, they live without them. Dr. A. Benda gave them their name in "
    "1898. Moreover, he drew them. Proteins are moved into the organelle in order to repair its walls."
)
GERMAN = (
    "Der Feldhamster\n\n"
    "Der Feldhamster ist ein Nagetier aus der Familie der Wühler, das in Europa und Asien lebt. Er wurde im 19. "
    "Jahrhundert in großer Zahl gejagt, weil sein Fell begehrt war. Heute steht er unter Schutz, z. B. in Bayern. "
    "Daher ist die Jagd auf ihn in vielen Ländern verboten. Mit anderen Worten: Niemand darf ihn fangen oder töten."
)
CHINESE = (
    "长江\n\n"
    "长江是一条发源于青藏高原的大河，全长约六千三百公里。流域内气候湿润，因为这里受季风影响很大。因此，沿岸的农业十分发达。\n"
    "换句话说，长江养育了沿岸的许多人口。然而，近几十年来污染一度十分严重。光合作用是指植物利用光能制造有机物的过程。"
)
TEXTS = {"en": ENGLISH, "de": GERMAN, "zh": CHINESE}

WORDS = [
    *ENGLISH.split(),
    *GERMAN.split(),
    *["<QUE>", "<ANS>", "</END>", "<CON>", "</CON>", "<\\QUE>", "{statement}", "{x}", "\n", "\n\n", "."],
]
LINES = [*ENGLISH.split("."), *GERMAN.split("."), *CHINESE.split("。"), "Options:\n- a\n- b", "\x00", "？", "。"]


def everything(text: str) -> list[Pair]:
    """All that the rules find in a text."""
    return [pair for seed in range(20) for pair in mine(text, seed, 40)]


def answers(text: str, word: str) -> set[str]:
    """Answers to the questions in which a word stands."""
    return {pair.answer for pair in everything(text) if word in pair.question and not pair.options}


@given(st.lists(st.sampled_from(WORDS) | st.sampled_from(LINES) | st.text(max_size=6), max_size=60), st.data())
def test_any_text_gives_pairs_that_come_back_from_the_wire_and_that_it_answers(parts: list[str], data: st.DataObject):
    text = data.draw(st.sampled_from([" ", ". ", "。", ""])).join(parts)
    seed, limit = data.draw(st.integers(0, 2**64)), data.draw(st.integers(0, 9))
    pairs = mine(text, seed, limit)
    (done,) = asyncio.run(RulesEngine(pairs=limit).generate([Request([1, 2], text, seed)]))
    assert parse(done.text) == (pairs, [])
    assert len(pairs) <= limit
    for pair in pairs:
        assert pair.answer in pair.options if pair.options else pair.answer.casefold() in text.casefold()


def test_the_same_seed_gives_the_same_pairs_and_another_one_others():
    for text in TEXTS.values():
        assert mine(text, 7) == mine(text, 7)
        assert len({tuple(mine(text, seed)) for seed in range(30)}) > 20
        assert all(len(mine(text, seed)) == 5 for seed in range(30))


def test_questions_that_differ_in_case_alone_are_one():
    sentence = "The cats of the town are many in number and they are fed by everyone who has a garden."
    for seed in range(20):
        pairs = mine(f"{sentence} {sentence.upper()}", seed, 40)
        assert parse(pairs_part(pairs)) == (pairs, [])


def test_english_rules():
    assert answers(ENGLISH, "title") == {"The mitochondrion"}
    assert answers(ENGLISH, "It keeps its own DNA. Why?") == {"It was once a free bacterium."}
    assert answers(ENGLISH, "What follows from this") == {"They hold thousands of mitochondria."}
    assert answers(ENGLISH, "other words: Red blood cells hold none") == {"They live without them."}
    assert answers(ENGLISH, "For what purpose") == {"To repair its walls."}
    assert answers(ENGLISH, 'How is "mitochondrion" defined') == {
        "An organelle that makes most of the energy of a cell."
    }
    assert answers(ENGLISH, f"here? Dr. A. {GAP} gave them") == {"Benda"}


def test_inference_has_the_verdict_of_its_connective_among_shuffled_options():
    found = [pair for seed in range(60) for pair in mine(ENGLISH, seed, 12) if pair.options]
    verdicts = load_phrases("en").verdicts
    told = {"They hold thousands": "effect", "Red blood cells": "contradiction", "He drew them": "neutral"}
    for pair in found:
        hypothesis = max(told, key=pair.question.rfind)
        assert pair.answer == verdicts[told[hypothesis]] and sorted(pair.options) == sorted(verdicts.values())
    places = Counter(pair.options.index(pair.answer) for pair in found)
    assert len(found) > 60 and min(places[place] for place in range(3)) > len(found) / 6


def test_german_rules():
    assert answers(GERMAN, "Überschrift") == {"Der Feldhamster"}
    assert answers(GERMAN, "Wie wird „Feldhamster“") == {
        "Ein Nagetier aus der Familie der Wühler, das in Europa und Asien lebt."
    }
    assert answers(GERMAN, "Zahl gejagt. Warum?") == {"Weil sein Fell begehrt war."}
    assert answers(GERMAN, "Was folgt laut Text") == {"Daher ist die Jagd auf ihn in vielen Ländern verboten."}
    assert answers(GERMAN, "Text selbst") == {"Niemand darf ihn fangen oder töten."}
    assert {"Jahrhundert", "Ländern"} <= answers(GERMAN, "Lücke")


def test_chinese_rules():
    assert answers(CHINESE, "标题") == {"长江"}
    assert answers(CHINESE, "说明“长江”") == {"一条发源于青藏高原的大河，全长约六千三百公里。"}
    assert answers(CHINESE, "说明“光合作用”") == {"指植物利用光能制造有机物的过程。"}
    assert answers(CHINESE, "为什么") == {"这里受季风影响很大。"}
    assert answers(CHINESE, "换一种说法") == {"长江养育了沿岸的许多人口。"}
    assert "全长约六千三百公里" in answers(CHINESE, "请填空")
    assert any(pair.options for pair in everything(CHINESE))


@pytest.mark.parametrize(("language", "text"), TEXTS.items())
def test_languages_are_told_and_others_left_alone(language: str, text: str):
    assert told_language(text) == language
    assert any(GAP in pair.question for pair in everything(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t ",
        "Le chat est un animal qui vit dans la maison. Il mange des souris parce qu'il les aime.",
        "猫は家で飼われる動物である。ネズミを食べるので、昔から人に好まれてきた。",
        "Кошка живёт в доме. Она ест мышей.",
        "0 1 2 3 4 5 6 7 8 9",
    ],
)
def test_what_offers_nothing_is_an_empty_completion(text: str):
    assert asyncio.run(RulesEngine().generate([Request([3], text, 1)])) == [Completion("", "stop", 1, 0)]


def test_tags_in_a_text_forge_no_pair():
    text = (
        "The tag <QUE> Who? <ANS> Me. </END> is a part of the format. It is written as it stands in the text, a word."
    )
    completion = asyncio.run(RulesEngine(pairs=40).generate([Request([1], text, 5)]))[0].text
    pairs, rejections = parse(completion)
    assert not rejections and "Who?" not in {pair.question for pair in pairs}
    assert any("<QUE> Who?" in pair.question + pair.answer for pair in pairs)


def test_tokens_are_words_or_as_counted():
    request = Request([1, 2, 3], ENGLISH, 9)
    (words,) = asyncio.run(RulesEngine().generate([request]))
    (counted,) = asyncio.run(RulesEngine(count=lambda text: 77).generate([request]))
    assert (words.prompt_tokens, words.completion_tokens, words.finish_reason) == (3, len(words.text.split()), "stop")
    assert counted.completion_tokens == 77 and counted.text == words.text
    assert RulesEngine().identity == RulesEngine(count=len).identity != RulesEngine(pairs=2).identity


def test_every_kind_that_a_language_looks_for_has_its_wordings():
    for language in LANGUAGES:
        phrases = load_phrases(language)
        kinds = {*phrases.lead.groupindex, *(kind for kind, _, _ in phrases.infix)}
        assert kinds - set(phrases.verdicts) <= set(phrases.questions)
        assert all(len(wordings) >= 1 for wordings in phrases.questions.values())
        assert {"title", "summary", "definition", "cloze", "completion"} <= set(phrases.questions)


MEGABYTE = [
    "a", "A", ".", " ", "\n", "'", ". ", ".' ", ".\n ", "The cell is ", "because ", ", so ", "It is the cell because ",
    "Therefore, ", "(", "<QUE>", "。", "，", "是", "因为", "Der Zug ist ", ", um ", "The a", "? ", "the of and to\n",
]  # fmt: skip


@pytest.mark.parametrize("part", MEGABYTE)
def test_a_megabyte_made_to_trap_the_patterns_takes_no_longer_than_another(part: str):
    """A pattern that looked at what it has passed over would take hours here."""
    head = random.Random(part).choice(list(TEXTS.values()))
    for text in (part * (1_000_000 // len(part)), f"{head} {part * (1_000_000 // len(part))}", ". " + part * 500_000):
        assert len(mine(text, 3)) <= 5
