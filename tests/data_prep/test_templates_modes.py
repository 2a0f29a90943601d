"""Modes: nothing is lost in any of them, and they are drawn at the paper's weights, each axis by itself."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from templates_data import LANGUAGES, MODES, PAIRS, chain_of, covers, draws, said, unlikely

from data_prep.records import AugmentedText, Chain, Pair, TrainingText
from data_prep.settings import RenderSettings
from data_prep.synthesis.wire import CONCLUSION, THINK_LINE
from data_prep.templates.documents import render_chain
from data_prep.templates.styles import load_styles

STYLES = {language: load_styles(language) for language in LANGUAGES}
CHARACTERS = st.characters(exclude_characters="\x00", exclude_categories=["Cs"])  # \x00 joins what is found below
WORDS = st.text(CHARACTERS, min_size=1, max_size=40).filter(lambda text: text == text.strip() and "\n" not in text)


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """A pair of any of the four kinds."""
    stem, final = draw(WORDS), draw(WORDS)
    rationale = draw(st.booleans())
    options: tuple[str, ...] = ()
    if draw(st.booleans()):
        options = tuple(draw(st.permutations([final, *draw(st.lists(WORDS, min_size=1, max_size=4))])))
    listed = "\nOptions:\n" + "\n".join(f"- {option}" for option in options) if options else ""
    think = "\n" + THINK_LINE if rationale else ""
    answer = f"{draw(WORDS)}\n{CONCLUSION}{final}" if rationale else final
    return Pair(stem + listed + think, answer, options, rationale, ("form", "length"))


CHAINS = st.lists(st.tuples(st.text(min_size=1, max_size=60), st.lists(pairs(), max_size=4)), min_size=1, max_size=4)


def stem(pair: Pair) -> str:
    return pair.question.partition("\nOptions:\n")[0].removesuffix("\n" + THINK_LINE)


def answers(text: TrainingText, of: int, pair: Pair) -> bool:
    """The answer stands there, or the name of a line of the options that holds it."""
    shown, answer = said(text, "answer", of), pair.answer.lstrip(" ")
    if answer in shown:
        return pair.options != () or shown == answer
    lines = [line for line in said(text, "question", of).replace("\x00", "\n").split("\n") if pair.answer in line]
    return bool(shown) and not pair.rationale and any(line.startswith(shown) for line in lines)


@pytest.mark.parametrize("language", LANGUAGES)
@settings(max_examples=150, deadline=None)
@given(CHAINS, st.sampled_from(MODES), st.sampled_from(["open_book", "both"]), st.booleans(), st.integers(0, 99))
def test_no_text_question_option_or_answer_is_lost(language, raw, mode, layout, inverted, seed) -> None:
    texts = tuple(AugmentedText(f"d{place}", text, tuple(group)) for place, (text, group) in enumerate(raw))
    wanted = RenderSettings(mode=mode, layout=layout, inversion=float(inverted), seed=seed, unanswerable=0.5)
    rendered = render_chain(Chain("c", texts), STYLES[language], wanted)
    for document in rendered:
        text = document.text
        assert covers(text.spans, len(text.text))
        closed = text.id == "c:closed_book"
        assert [said(text, "text", place) for place in range(len(texts))] == [
            "" if closed else part.text for part in texts
        ]
        for of, pair in enumerate(pair for part in texts for pair in part.pairs):
            assert stem(pair).lstrip(" ") in said(text, "question", of)
            assert all(option in said(text, "question", of) for option in pair.options)
            assert answers(text, of, pair) != (mode == "questions_only")
        assert [origin.checks for origin in text.origins] == [("form length",) * len(part.pairs) for part in texts]
    books = 1 + (layout == "both" and any(part.pairs for part in texts))
    assert len({document.text.id for document in rendered}) == len(rendered) == books


@pytest.mark.parametrize("mode", MODES)
def test_the_blank_before_a_question_or_an_answer_is_of_it(mode: str) -> None:
    """A blank and the word after it are one token: were the blank the template's, so would be the word."""
    moved = 0
    for number in range(40):
        text = render_chain(chain_of(number), STYLES["en"], RenderSettings(mode=mode))[0].text
        for left, right in itertools.pairwise(text.spans):
            if right.kind in ("question", "answer"):
                assert left.kind != "template" or not text.text[left.start : left.end].endswith(" ")
                moved += text.text[right.start] == " "
            elif right.kind == "text":
                origin = text.origins[right.of]
                assert (origin.at, right.end - right.start) == (right.start, origin.end - origin.start)
    assert moved > 40


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_style_of_every_kind_is_used_and_keeps_a_question_s_own_mark(language: str) -> None:
    used: dict[str, set[int]] = {}
    for number, mode in itertools.product(range(1000), ("classic", "dialogue", "numbered")):
        text = render_chain(chain_of(number), STYLES[language], RenderSettings(mode=mode))[0].text
        for axis, index in draws(text).items():
            used.setdefault(axis, set()).add(index)
        for of, pair in enumerate(PAIRS):
            shown = said(text, "question", of) + said(text, "answer", of)
            assert shown.count("?") == pair.question.count("?") + pair.answer.count("?")
        for left, right in itertools.pairwise(text.spans):
            if left.kind in ("question", "answer"):
                assert text.text[right.start] not in "?!.,;:。？！，；："  # noqa: RUF001
    lists = STYLES[language].lists
    for kind in ("free", "options", "rationale", "options_rationale"):
        assert len(used[kind]) == len(lists[f"{kind}.anywhere"]) + len(lists[f"{kind}.with_text"])
    for axis, name in (
        ("labels", "labels.labels"),
        ("option_lines", "option_lines.lines"),
        ("turns", "dialogue.turns"),
    ):
        assert len(used[axis]) == len(lists[name])


def order(text: TrainingText, *needles: tuple[str, int]) -> list[int]:
    """Where the first spans of these classes and origins start."""
    return [next(span.start for span in text.spans if (span.kind, span.of) == needle) for needle in needles]


@pytest.mark.parametrize(
    ("mode", "inversion", "wanted"),
    [
        ("classic", 0, "t0 q0 a0 q1 a1 t1 q2 a2 q3 a3"),
        ("classic", 1, "q0 a0 q1 a1 t0 q2 a2 q3 a3 t1"),
        ("dialogue", 0, "t0 q0 a0 q1 a1 t1 q2 a2 q3 a3"),
        ("dialogue", 1, "q0 a0 q1 a1 t0 q2 a2 q3 a3 t1"),
        ("numbered", 1, "t0 q0 q1 a0 a1 t1 q2 q3 a2 a3"),
        ("worked_examples", 1, "t0 q0 a0 q1 a1 t1 q2 a2 q3 a3"),
        ("next_turn", 1, "t0 q0 a0 q1 a1 t1 q2 a2 q3 a3"),
        ("questions_only", 1, "t0 q0 q1 t1 q2 q3"),
    ],
)
def test_the_order_of_each_mode(mode, inversion, wanted: str) -> None:
    free = PAIRS[:1] * 2
    kinds = {"t": "text", "q": "question", "a": "answer"}
    for number in range(30):
        text = render_chain(
            chain_of(number, [free, free]), STYLES["en"], RenderSettings(mode=mode, inversion=inversion)
        )
        places = order(text[0].text, *((kinds[item[0]], int(item[1])) for item in wanted.split()))
        assert places == sorted(places)
        if mode == "questions_only":
            assert text[0].counts["answers_lost"] == 4
            assert not [span for span in text[0].text.spans if span.kind == "answer"]


def test_two_speakers_take_turns_and_the_last_turn_is_to_be_produced() -> None:
    speakers = STYLES["en"].lists["dialogue.speakers"]
    for number in range(50):
        free = PAIRS[:1] * 3
        talk, cut = (
            render_chain(chain_of(number, [free]), STYLES["en"], RenderSettings(mode=mode, inversion=0))[0].text
            for mode in ("dialogue", "next_turn")
        )
        asks, replies = speakers[draws(talk)["speakers"]]
        for text, turns in ((talk, 3), (cut, 2)):
            wording = [text.text[span.start : span.end] for span in text.spans if span.kind == "template"]
            tail = wording[-1] if text is cut else ""
            assert sum(asks in piece for piece in wording[1:]) >= turns - 1
            assert sum(replies in piece for piece in wording if piece is not tail) >= turns


@pytest.mark.parametrize("mode", MODES[:5])
def test_a_closed_book_does_not_speak_of_a_text_nor_an_inverted_one_of_what_is_above(mode: str) -> None:
    there = re.compile(r"\b(passage|text|article|document|source|lines|reading)\b", re.IGNORECASE)
    above = re.compile(r"\b(above|just read|start by reading|begin with)\b", re.IGNORECASE)
    for number in range(400):
        both = RenderSettings(mode=mode, layout="both", inversion=1.0)
        upright, closed = (document.text for document in render_chain(chain_of(number), STYLES["en"], both))
        for text, banned in ((closed, there), (upright, above)):
            wording = "".join(text.text[span.start : span.end] for span in text.spans if span.kind == "template")
            assert not banned.search(wording) or (text is upright and mode not in MODES[:2])


@pytest.mark.parametrize(
    ("groups", "weights"),
    [
        ((2, 2), {"classic": 80, "dialogue": 5, "numbered": 5, "worked_examples": 5, "next_turn": 5}),
        ((2, 1), {"classic": 95, "dialogue": 5}),
        ((1,), {"classic": 95, "dialogue": 5}),
    ],
)
def test_modes_and_inversion_have_the_paper_s_weights(groups, weights) -> None:
    count = 6000
    modes: Counter[str] = Counter()
    inverted: Counter[str] = Counter()
    for number in range(count):
        chain = chain_of(number, [PAIRS[:1] * group for group in groups])
        document = render_chain(chain, STYLES["en"], RenderSettings())[0]
        modes[document.mode] += 1
        inverted[document.mode] += document.inverted
    assert not unlikely(modes, {mode: weight * count / 100 for mode, weight in weights.items()})
    assert not inverted.keys() - weights.keys() and not any(inverted[mode] for mode in weights if mode not in MODES[:2])
    for mode in ("classic", "dialogue"):
        found = {True: inverted[mode], False: modes[mode] - inverted[mode]}
        assert not unlikely(found, {True: 0.05 * modes[mode], False: 0.95 * modes[mode]})


TUPLES = [
    ("texts", "tasks"),
    ("texts", "free"),
    ("free", "options"),
    ("free", "labels", "spacing"),
    ("texts", "tasks", "free"),
    ("options", "option_lines", "answer_form"),
    ("free", "options", "rationale"),
    ("rationale", "options_rationale", "labels"),
]


def test_axes_are_independent() -> None:
    """The public code restarts one seed for every choice: 5,264 triples of 185,659 that independence gives."""
    drawn = []
    for number in range(8000):
        text = render_chain(chain_of(number), STYLES["en"], RenderSettings(mode="classic", inversion=0))[0].text
        drawn.append(draws(text))
    axes = sorted({axis for row in drawn for axis in row})
    sizes = {axis: 1 + max(row.get(axis, 0) for row in drawn) for axis in axes}

    def together(names: tuple[str, ...]) -> tuple[list[tuple[int, ...]], int]:
        """What was drawn for these axes where all were, and how many combinations there are."""
        rows = [tuple(row[axis] for axis in names) for row in drawn if all(axis in row for axis in names)]
        return rows, math.prod(sizes[axis] for axis in names)

    for names in TUPLES:
        rows, cells = together(names)
        assert len(set(rows)) >= 0.95 * cells * (1 - (1 - 1 / cells) ** len(rows)), names
    tested = 0
    for names in itertools.combinations(axes, 2):
        rows, cells = together(names)
        if len(rows) >= 5 * cells:
            grid = itertools.product(*(range(sizes[axis]) for axis in names))
            assert not unlikely(Counter(rows), {cell: len(rows) / cells for cell in grid}), names
            tested += 1
    assert tested >= 30


def test_mode_inversion_and_styles_are_independent() -> None:
    """Inversion does not depend on the mode, nor the delimiter on inversion."""
    found: Counter[tuple[bool, bool, int]] = Counter()
    for number in range(6000):
        chain = chain_of(number, [PAIRS[:1]])
        document = render_chain(chain, STYLES["en"], RenderSettings(inversion=0.5))[0]
        delimiter = int(document.text.template.split("delimiter=")[1].split(";")[0])
        found[document.mode == "dialogue", document.inverted, delimiter] += 1
    shares = {True: 0.05, False: 0.95}
    expected = {
        (dialogue, inverted, delimiter): 6000 * shares[dialogue] / 2 / 6
        for dialogue, inverted, delimiter in itertools.product((True, False), (True, False), range(6))
    }
    assert not unlikely(found, expected)


def test_a_document_depends_on_its_own_chain_only() -> None:
    settings_ = RenderSettings(layout="both", unanswerable=0.3)
    chains = [chain_of(number, [PAIRS, PAIRS[:2]]) for number in range(40)]
    forward = {chain.id: render_chain(chain, STYLES["en"], settings_) for chain in chains}
    fresh = load_styles("en")
    assert all(render_chain(chain, fresh, settings_) == forward[chain.id] for chain in reversed(chains))
    other = render_chain(chains[0], STYLES["en"], settings_.model_copy(update={"seed": 1}))
    assert [document.text.text for document in other] != [document.text.text for document in forward["c0"]]


# Labels whose marks make sense at the start of a line only, by what stands before the question.
LINES = {"en": {"- ", "> ", "* Q: ", "### Question\n"}, "de": {"- "}, "zh": set[str]()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_under_labels_of_lines_an_answer_has_a_line_of_its_own(language: str) -> None:
    met: Counter[tuple[str, bool]] = Counter()
    for number in range(400):
        chain = chain_of(number, [PAIRS[:1] * 2])
        text = render_chain(chain, STYLES[language], RenderSettings(mode="classic", inversion=0))[0].text
        drawn = draws(text)
        label, reply = STYLES[language].lists["labels.labels"][drawn["labels"]]
        joint, _ = STYLES[language].lists["spacing.pairs"][drawn["spacing"]]
        between = [
            text.text[left.end : right.start]
            for left, right in zip(text.spans, text.spans[2:], strict=False)
            if (left.kind, right.kind) == ("question", "answer")
        ]
        for wording in between:
            if label in LINES[language] and "{number}" not in reply:
                assert wording.startswith("\n") or f"\n{reply.strip(' ')}" in wording, text.text
                met[label, "\n" in joint] += 1
    assert met.keys() == {(label, own) for label in LINES[language] for own in (True, False)}


@pytest.mark.parametrize("mode", ["numbered", "worked_examples"])
def test_one_pair_alone_is_laid_out_as_in_classic(mode: str) -> None:
    """There is no second question to number, and no example to follow; two pairs have their headings."""
    headings = {part for entry in STYLES["en"].lists[f"{mode}.headings"] for part in entry}
    for number in range(40):
        chain = chain_of(number, [PAIRS[:1]])
        one, classic = (
            render_chain(chain, STYLES["en"], RenderSettings(mode=name, inversion=0))[0].text
            for name in (mode, "classic")
        )
        assert (one.text, one.spans) == (classic.text, classic.spans)
        two = render_chain(chain_of(number, [PAIRS[:1] * 2]), STYLES["en"], RenderSettings(mode=mode))[0].text
        assert sum(heading in two.text for heading in headings) >= 2


def test_a_text_without_pairs_stands_alone_and_nothing_leaks_into_the_next() -> None:
    for number, mode in itertools.product(range(20), MODES):
        chain = chain_of(number, [PAIRS, (), PAIRS[:1]])
        text = render_chain(chain, STYLES["en"], RenderSettings(mode=mode, inversion=0))[0].text
        alone = render_chain(Chain("x", chain.texts[1:2]), STYLES["en"], RenderSettings(mode=mode, inversion=0))[0].text
        assert alone.text in text.text and [span.kind for span in alone.spans].count("text") == 1
        assert {span.of for span in text.spans if span.kind == "question"} == set(range(5))
    assert render_chain(Chain("x", ()), STYLES["en"], RenderSettings()) == []
    nothing = Chain("x", chain.texts[1:2])
    assert render_chain(nothing, STYLES["en"], RenderSettings(layout="closed_book")) == []
