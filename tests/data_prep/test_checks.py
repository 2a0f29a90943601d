"""Checks: each drops what it says, and in = kept + dropped always."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.checks import CHECKS, check
from data_prep.checks.duplicates import normalise
from data_prep.checks.grounding import grounding
from data_prep.errors import UserError
from data_prep.readers import read_jsonl, write_jsonl
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import CheckSettings

TEXT = "The lighthouse at Skarsund was built in 1874. Its keeper was Ingrid Dahl."


def verdicts(tmp_path: Path, pairs: list[Pair], checks: tuple[str, ...], **values) -> list[str]:
    """What happens to each pair, in order, of one text: kept, or check/reason."""
    chain = Chain("c", (AugmentedText("d", TEXT, tuple(pairs), 0, len(TEXT)),))
    write_jsonl(tmp_path / "in.jsonl", [chain.to_json()])
    check(CheckSettings(checks=checks, **values), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    gone = [(Pair.from_json(row["pair"]), row) for row in read_jsonl(tmp_path / "out.jsonl.dropped.jsonl")]
    result = []
    for pair in pairs:
        place = next((i for i, (dropped, _) in enumerate(gone) if dropped == pair), None)
        result.append("kept" if place is None else "{check}/{reason}".format(**gone.pop(place)[1]))
    return result


def test_form_and_length(tmp_path: Path):
    choice = ("It is red.", "It is blue.")
    pairs = [
        Pair(" ", "x"),
        Pair("q", "\n"),
        Pair("q1", "Red.", choice),
        Pair("q2", "it is red.", choice),
        Pair("q3", "Reasons.\nTherefore, the answer is red", choice, rationale=True),
        Pair("q" * 30, "x"),
        Pair("q4", "x" * 50),
    ]
    got = verdicts(tmp_path, pairs, ("form", "length"), max_question_characters=20, max_answer_characters=45)
    assert got == [
        "form/empty_question",
        "form/empty_answer",
        "form/answer_not_an_option",
        "kept",
        "kept",
        "length/question_too_long",
        "length/answer_too_long",
    ]


def test_grounding_asks_only_answers_that_can_be_grounded(tmp_path: Path):
    pairs = [
        Pair("Who was the keeper?", "The keeper was Ingrid Dahl."),
        Pair("Who built it?", "A Danish engineer named Olsen did."),
        Pair("Was it built in 1874?", "Yes."),
        Pair("In how many years?", "1,900"),
        Pair("Why?", "Ships sank there.\nTherefore, the answer is safety", rationale=True),
        Pair("Colour?", "Purple", ("Purple", "Green")),
        Pair("Is it tall?", "is it TALL"),
    ]
    expected = ["kept", "grounding/not_grounded", *["kept"] * 4, "grounding/answer_is_question"]
    assert verdicts(tmp_path, pairs, ("grounding",)) == expected
    assert verdicts(tmp_path, pairs[1:2], ("grounding",), min_grounding=0.0) == ["kept"]
    assert grounding("keeper Olsen", TEXT) == 0.5


def test_duplicates_within_a_text_over_the_corpus_and_boilerplate(tmp_path: Path):
    def text(name: str, *pairs: tuple[str, str]) -> AugmentedText:
        return AugmentedText(name, TEXT, tuple(Pair(*pair) for pair in pairs), 0, len(TEXT))

    boilerplate = ("What is this about?", "Things")
    texts = (
        text("a", ("Who?", "Dahl"), ("who", "Ingrid"), boilerplate),
        text("b", ("Who?", "dahl."), ("When?", "1874"), boilerplate),
        text("c", ("When?", "in 1874"), boilerplate),
    )
    write_jsonl(tmp_path / "in.jsonl", [Chain("c", texts).to_json()])
    settings = CheckSettings(checks=("duplicates",), max_question_repeats=2)
    summary = check(settings, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert summary["dropped"]["duplicates"] == {
        "question_repeated_in_text": 1,
        "question_of_many_texts": 3,
        "pair_repeated_in_corpus": 1,
    }
    (row,) = read_jsonl(tmp_path / "out.jsonl")
    kept = {text.document_id: [pair.answer for pair in text.pairs] for text in Chain.from_json(row).texts}
    assert kept == {"a": ["Dahl"], "b": ["1874"], "c": ["in 1874"]}


def test_a_text_that_loses_all_its_pairs_leaves_the_chain_as_raw_text(tmp_path: Path):
    texts = tuple(AugmentedText(f"d{i}", TEXT, (Pair(f"q{i}", "Ingrid" if i else "nowhere"),), 5, 9) for i in range(3))
    write_jsonl(tmp_path / "in.jsonl", [Chain("c1", texts).to_json(), Chain("c2", texts[:1]).to_json()])
    summary = check(CheckSettings(checks=("grounding",)), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    (row,) = read_jsonl(tmp_path / "out.jsonl")
    assert [text.document_id for text in Chain.from_json(row).texts] == ["d1", "d2"]
    left = list(read_jsonl(tmp_path / "out.jsonl.leftover.jsonl"))
    assert [(row["document_id"], row["start"], row["end"], row["pairs"]) for row in left] == [("d0", 5, 9, [])] * 2
    assert (summary["in"], summary["kept"], summary["chains"], summary["leftover_texts"]) == (4, 2, 1, 2)


WORDS = st.sampled_from(["", "yes", "Ingrid Dahl", "nothing here", "1874", "Who?", "q" * 50])
PAIRS = st.builds(Pair, WORDS, WORDS, st.just(()) | st.just(("yes", "no")), st.booleans())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.lists(PAIRS, max_size=4), min_size=1, max_size=3), max_size=4), st.permutations(list(CHECKS))
)
def test_in_is_kept_plus_dropped(tmp_path: Path, corpus: list[list[list[Pair]]], order: list[str]):
    chains = [
        Chain(str(i), tuple(AugmentedText(f"{i}.{j}", TEXT, tuple(pairs)) for j, pairs in enumerate(texts)))
        for i, texts in enumerate(corpus)
    ]
    write_jsonl(tmp_path / "in.jsonl", [chain.to_json() for chain in chains])
    write_jsonl(tmp_path / "tasks.jsonl", [{"question": "nothing here at all"}, {"question": "q " * 50}])
    values = {"checks": tuple(order), "max_question_characters": 20, "max_question_repeats": 1}
    values |= {"decontaminate": (tmp_path / "tasks.jsonl",), "decontaminate_min_units": 1}
    summary = check(CheckSettings(**values), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    total = sum(len(pairs) for texts in corpus for pairs in texts)
    dropped = sum(count for reasons in summary["dropped"].values() for count in reasons.values())
    assert summary["in"] == total == summary["kept"] + dropped
    written = [text for row in read_jsonl(tmp_path / "out.jsonl") for text in Chain.from_json(row).texts]
    left = list(read_jsonl(tmp_path / "out.jsonl.leftover.jsonl"))
    assert all(text.pairs for text in written)
    assert len(written) + len(left) == sum(map(len, corpus))
    assert len(list(read_jsonl(tmp_path / "out.jsonl.dropped.jsonl"))) == dropped


QUESTIONS = st.sampled_from(["Who?", "who", "When?", "Why, then?", ""])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.builds(Pair, QUESTIONS, WORDS), max_size=4), max_size=6), st.integers(1, 3))
def test_duplicates_are_those_that_a_naive_count_finds(tmp_path: Path, corpus: list[list[Pair]], most: int):
    texts = [AugmentedText(str(i), TEXT, tuple(pairs)) for i, pairs in enumerate(corpus)]
    write_jsonl(tmp_path / "in.jsonl", [Chain(text.document_id, (text,)).to_json() for text in texts])
    settings = CheckSettings(checks=("duplicates",), max_question_repeats=most)
    summary = check(settings, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    asked_by = Counter(question for pairs in corpus for question in {normalise(pair.question) for pair in pairs})
    expected: Counter[str] = Counter()
    met: list[tuple[str, str]] = []
    for pairs in corpus:
        here: list[str] = []
        for pair in pairs:
            question, answer = normalise(pair.question), normalise(pair.answer)
            if asked_by[question] > most:
                expected["question_of_many_texts"] += 1
            elif question in here:
                expected["question_repeated_in_text"] += 1
            else:
                here.append(question)
                expected["pair_repeated_in_corpus"] += (question, answer) in met
                met.append((question, answer))
    assert summary["dropped"]["duplicates"] == dict(+expected)


def test_chains_are_not_held_in_memory(tmp_path: Path):
    def rows(count: int):
        for i in range(count):
            pairs = tuple(Pair(f"What of {i} and {j}?", "Ingrid Dahl" if j else "nowhere") for j in range(3))
            yield Chain(f"c{i}", (AugmentedText(f"d{i}", TEXT * 30, pairs),)).to_json()

    peaks = []
    for count in (50, 350):
        write_jsonl(tmp_path / "in.jsonl", rows(count))
        check(CheckSettings(), tmp_path / "in.jsonl", tmp_path / "out.jsonl")  # what is loaded once is no part of it
        tracemalloc.start()
        summary = check(CheckSettings(), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert summary["kept"] == 2 * count
    assert peaks[1] - peaks[0] < 300 * 3 * 150  # bytes: hashes of 900 pairs, not 0.6 MB of text


def test_dropped_pairs_are_written_on_demand_and_counted_anyway(tmp_path: Path):
    chain = Chain("c", (AugmentedText("d", TEXT, (Pair("q", "nowhere"), Pair("p", "Ingrid Dahl"))),))
    write_jsonl(tmp_path / "in.jsonl", [chain.to_json()])
    for wanted in (True, False):  # a file of before is not left beside new chains
        summary = check(CheckSettings(write_dropped=wanted), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
        assert summary["dropped"]["grounding"] == {"not_grounded": 1}
        assert (tmp_path / "out.jsonl.dropped.jsonl").exists() == wanted


def test_a_chain_that_cannot_be_read_leaves_the_files_of_before(tmp_path: Path):
    chain = Chain("c", (AugmentedText("d", TEXT, (Pair("p", "Ingrid Dahl"),)),))
    write_jsonl(tmp_path / "in.jsonl", [chain.to_json()])
    check(CheckSettings(), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out*")}
    with (tmp_path / "in.jsonl").open("ab") as file:
        file.write(b'{"id": "e"}\n')
    with pytest.raises(UserError, match=r"in.jsonl:2: not a chain"):
        check(CheckSettings(checks=("form",)), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("out*")} == before


def test_an_unknown_check_is_told(tmp_path: Path):
    write_jsonl(tmp_path / "in.jsonl", [])
    with pytest.raises(UserError, match="did you mean 'grounding'"):
        check(CheckSettings(checks=("groundin",)), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
