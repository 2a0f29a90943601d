"""Checks: each drops what it says, and in = kept + dropped always."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.checks import CHECKS, check
from data_prep.checks.grounding import grounding
from data_prep.errors import UserError
from data_prep.readers import read_jsonl, write_jsonl
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import CheckSettings

TEXT = "The lighthouse at Skarsund was built in 1874. Its keeper was Ingrid Dahl."


def verdicts(tmp_path: Path, pairs: list[Pair], checks: tuple[str, ...] = tuple(CHECKS), **values) -> list[str]:
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
    values = {"checks": tuple(order), "max_question_characters": 20, "max_question_repeats": 1}
    summary = check(CheckSettings(**values), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    total = sum(len(pairs) for texts in corpus for pairs in texts)
    dropped = sum(count for reasons in summary["dropped"].values() for count in reasons.values())
    assert summary["in"] == total == summary["kept"] + dropped
    written = [text for row in read_jsonl(tmp_path / "out.jsonl") for text in Chain.from_json(row).texts]
    left = list(read_jsonl(tmp_path / "out.jsonl.leftover.jsonl"))
    assert all(text.pairs for text in written)
    assert len(written) + len(left) == sum(map(len, corpus))


def test_an_unknown_check_is_told(tmp_path: Path):
    write_jsonl(tmp_path / "in.jsonl", [])
    with pytest.raises(UserError, match="did you mean 'grounding'"):
        check(CheckSettings(checks=("groundin",)), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
