"""Options: the right one's place is uniform, and no name that is shown contradicts the answer."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from templates_data import LANGUAGES, chain_of, draws, said, unlikely

from data_prep.records import Pair, TrainingText
from data_prep.settings import RenderSettings
from data_prep.synthesis.wire import CONCLUSION, recognise
from data_prep.templates.documents import render_chain
from data_prep.templates.styles import load_styles

STYLES = {language: load_styles(language) for language in LANGUAGES}
COLOURS = ("red", "blue", "green", "amber")


def choice(answer: str = "blue", options: tuple[str, ...] = COLOURS, rationale: str = "") -> Pair:
    listed = "Which is it?\nOptions:\n" + "\n".join(f"- {option}" for option in options)
    return recognise(listed, f"{rationale}\n{CONCLUSION}{answer}" if rationale else answer)


def rendered(number: int, *pairs: Pair, language: str = "en", **changes: object) -> TrainingText:
    settings = RenderSettings(mode="classic", inversion=0, language=language).model_copy(update=changes)
    return render_chain(chain_of(number, [pairs]), STYLES[language], settings)[0].text


def block(text: TrainingText, of: int = 0) -> str:
    return said(text, "question", of).replace("Which is it?", "").strip("\x00")


def shown_order(text: TrainingText, of: int = 0, options: tuple[str, ...] = COLOURS) -> tuple[str, ...]:
    return tuple(sorted(options, key=block(text, of).index))


@pytest.mark.parametrize("rationale", ["", "It was dark."])
def test_the_right_option_s_place_is_uniform_for_the_first_question_of_each_text_too(rationale: str) -> None:
    pairs = [choice(answer, rationale=rationale) for answer in COLOURS]
    count = 3000
    texts = [rendered(number, *pairs) for number in range(count)]
    for of, answer in enumerate(COLOURS):
        places = Counter(shown_order(text, of).index(answer) for text in texts)
        assert not unlikely(places, dict.fromkeys(range(4), count / 4)), of
    orders = Counter(shown_order(text, 0) for text in texts)
    assert not unlikely(orders, dict.fromkeys(itertools.permutations(COLOURS), count / 24))
    both = Counter((shown_order(text, 0).index("red"), shown_order(text, 1).index("red")) for text in texts)
    assert not unlikely(both, dict.fromkeys(itertools.product(range(4), repeat=2), count / 16))
    by_line = Counter((draws(text)["option_lines"], shown_order(text)[0]) for text in texts)
    lines = range(len(STYLES["en"].lists["option_lines.lines"]))
    assert not unlikely(by_line, dict.fromkeys(itertools.product(lines, COLOURS), count / 4 / len(lines)))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_answer_is_the_option_its_name_or_its_line(language: str) -> None:
    forms: Counter[str] = Counter()
    for number in range(600):
        text = rendered(number, choice(), language=language)
        answer, lines = said(text, "answer", 0), block(text).split("\n")
        right = next(line for line in lines if "blue" in line)
        if answer == right and right != "blue":
            forms["line"] += 1
        elif answer == "blue":
            forms["words"] += 1
        else:
            assert right.startswith(answer) and not any(line.startswith(answer) for line in lines if line != right)
            forms["name"] += 1
    assert min(forms.values()) > 60 and len(forms) == 3


@pytest.mark.parametrize(
    ("pair", "kind"),
    [
        (choice("B"), "letter"),
        (choice("(b)"), "letter"),
        (choice("B. blue"), "letter"),
        (choice("2"), "number"),
        (choice("B", rationale="It is dark."), "letter"),
        (choice("blue", rationale="Option B is dark, the rest is light."), "letter"),
        (choice("blue", rationale="Only (2) is dark."), "number"),
        (choice("both A and B", ("red", "blue", "both A and B")), "letter"),
    ],
)
def test_where_the_pair_names_options_they_keep_their_order_and_those_names(pair: Pair, kind: str) -> None:
    for number in range(60):
        text = rendered(number, pair, unanswerable=1.0)
        lines = block(text).split("\n")
        assert len(lines) == len(pair.options) + 1
        names = "ABCD" if kind == "letter" else "1234"
        for line, option, name in zip(lines, pair.options, names, strict=False):
            assert line.endswith(option) and name in line.removesuffix(option).upper()
        assert said(text, "answer", 0) == pair.answer


def test_options_with_names_of_their_own_get_no_second_ones() -> None:
    own = ("A. red", "B. blue", "C. green")
    initials = ("J. Bach", "A. Berg", "C. Debussy")
    orders = set()
    for number in range(60):
        assert [line.lstrip("-* ") for line in block(rendered(number, choice("B. blue", own))).split("\n")] == [*own]
        orders.add(shown_order(rendered(number, choice("A. Berg", initials)), options=initials))
    assert len(orders) == 6


def test_an_option_that_speaks_of_the_others_place_stays_last() -> None:
    options = ("red", "blue", "all of the above")
    seen = set()
    for number in range(80):
        text = rendered(number, choice("blue", options), unanswerable=1.0)
        lines = block(text).split("\n")
        assert lines[-1].endswith("all of the above") and len(lines) == 4
        seen.add(next(place for place, line in enumerate(lines) if line.endswith("blue")))
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_unanswerable_option_is_there_as_often_as_asked_and_never_right(language: str) -> None:
    wordings = [wording for (wording,) in STYLES[language].lists["option_lines.unanswerable"]]
    pair = choice(wordings[0], (*COLOURS, wordings[0]))  # here that wording is an option, and right
    count = 2000
    added, words, places = 0, Counter[str](), Counter[int]()
    for number in range(count):
        text = rendered(number, choice(), pair, language=language, unanswerable=0.25)
        lines = block(text).split("\n")
        added += len(lines) == 5
        assert len(lines) in (4, 5)
        if len(lines) == 5:
            extra = next(line for line in lines if not any(colour in line for colour in COLOURS))
            words.update(wording for wording in wordings if extra.endswith(wording))
            places[next(place for place, line in enumerate(lines) if "blue" in line)] += 1
            assert said(text, "answer", 0) != extra
        assert sum(line.endswith(wordings[0]) for line in block(text, 1).split("\n")) == 1
    assert not unlikely({True: added, False: count - added}, {True: count / 4, False: count * 3 / 4})
    assert not unlikely(words, dict.fromkeys(wordings, added / len(wordings)))
    assert not unlikely(places, dict.fromkeys(range(5), added / 5))
    assert len(block(rendered(1, choice())).split("\n")) == 4


@pytest.mark.parametrize(
    ("pair", "lines"),
    [
        (choice("a bird", ("a cat", "a dog")), 2),
        (choice("a bird", ("a cat", "a dog"), rationale="It has wings."), 2),
        (choice("C", ("a cat", "a dog")), 2),
        (choice("B. a bird", ("a cat", "a dog")), 2),
        (choice("none of the above", ("a cat", "a dog", "none of the above")), 3),
        (choice("all of the above", ("a cat", "a dog", "all of the above")), 3),
        (choice("Unknown", ("a cat", "Unknown")), 2),
        (choice("a dog.", ("a cat", "a dog")), 3),
        (choice("B", ("a cat", "a dog")), 3),
        (choice("B. a dog.", ("a cat", "a dog")), 3),
        (choice("a dog", ("a cat", "a dog"), rationale="It barks."), 3),
    ],
)
def test_no_option_is_added_that_may_be_right(pair: Pair, lines: int) -> None:
    """ "None of these" is right where the answer is no option, and where it says the same in other words."""
    for number in range(30):
        assert len(block(rendered(number, pair, unanswerable=1.0)).split("\n")) == lines


def test_an_answer_that_is_no_option_stays_as_it_is_and_many_options_have_names() -> None:
    for number in range(40):
        assert said(rendered(number, choice("purple")), "answer", 0) == "purple"
        many = tuple(f"<{place}>" for place in range(60))
        lines = block(rendered(number, choice("<7>", many))).split("\n")
        assert len(lines) == len({line.partition("<")[0] + line for line in lines}) == 60
        names = {line.partition("<")[0] for line in lines}
        assert len(names) in (1, 60)
