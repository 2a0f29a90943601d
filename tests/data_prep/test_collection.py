"""Task datasets become tuning sequences whose pairs, and nothing else, are trained on; everything is counted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers_for_tests import llama3_like, metaspace

from data_prep.collection.collect import choose, collect
from data_prep.collection.rows import pair_of
from data_prep.collection.sequences import Shot, concatenate, fit
from data_prep.collection.settings import CollectSettings
from data_prep.errors import UserError
from data_prep.indexing import index
from data_prep.indexing.reader import IndexedDatasetReader
from data_prep.indexing.spans import SpansReader
from data_prep.indexing.tokenizer import load_tokenizer
from data_prep.packing.labels import counted_runs
from data_prep.readers import read_chains, read_jsonl
from data_prep.records import AugmentedText, Pair, TrainingText
from data_prep.settings import IndexSettings
from data_prep.synthesis.demonstrations import load_demonstrations
from data_prep.synthesis.wire import context_part, escape, load_wire, pairs_part, parse

SMALL = Path(__file__).parents[2] / "examples" / "released_data" / "small" / "ft-instruction-synthesizer-collection"
LIMIT = 400


@pytest.fixture(scope="module", params=["llama3", "metaspace"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make = {"llama3": llama3_like, "metaspace": metaspace}[request.param]
    return make(tmp_path_factory.mktemp("tokenizer") / request.param)


def collected(tokenizer: Path, out: Path, inputs: Sequence[Path] = (SMALL,), **given: Any) -> dict[str, Any]:
    return collect(CollectSettings(tokenizer=tokenizer, **given), inputs, out)


def put(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def row(context: str, *pairs: tuple[str, str]) -> dict[str, Any]:
    return {"context": context, "QA_list": [{"Q": q, "A": a} for q, a in pairs], "QA_type": "free_form"}


def test_the_labels_that_train_are_exactly_the_pairs_and_the_end_of_each_shot(tokenizer: Path, tmp_path: Path):
    """Oracle: the wire format's own encoding of each shot, and which of its characters are pairs, by counting them."""
    collected(tokenizer, tmp_path / "out", seq_length=1000)
    prefix = tmp_path / "tuning"
    policy = IndexSettings(tokenizer=tokenizer, prepend_bos=False, append_eod=False, workers=0)
    index(policy, [tmp_path / "out" / "tuning.jsonl"], tokenizer, prefix)
    reader, spans, wire = IndexedDatasetReader(prefix), SpansReader(prefix), load_wire(tokenizer)
    chains = list(read_chains(tmp_path / "out" / "chains.jsonl"))
    assert reader.documents == len(chains) and max(len(chain.texts) for chain in chains) > 1
    for number, chain in enumerate(chains):
        ids, trained = [], []
        for text in chain.texts:
            shot = wire.example(text)
            ids += shot
            trained += naive_labels(load_tokenizer(tokenizer, policy).encoder, text)
        assert reader.document(number).tolist() == ids and len(ids) <= 1000
        runs = spans.runs_of(number, number + 1)
        counted, first_only = counted_runs("pairs", runs.classes, runs.counts)
        starts = np.concatenate(([0], runs.ends[:-1]))
        found = np.zeros(len(ids), bool)
        for start, end, counts, first in zip(starts, runs.ends, counted, first_only, strict=True):
            found[start : start + 1 if first else end] = counts
        assert found.tolist() == trained


def naive_labels(tokenizer: Tokenizer, text: AugmentedText) -> list[bool]:
    """A token of a shot is trained on if it starts, as the tokenizers library says, at or past the first <QUE>."""
    opening = context_part(text.text)
    encoding = tokenizer.encode(opening + pairs_part(text.pairs), add_special_tokens=False)
    return [False, *(start >= len(opening) for start, _ in encoding.offsets), True]


def test_contexts_are_gathered_pairs_are_in_the_wire_format_and_all_is_counted(tokenizer: Path, tmp_path: Path):
    summary = collected(tokenizer, tmp_path, held_out=("harbour_quiz",))
    examples = {text.text[:9]: text for text in map(AugmentedText.from_json, read_jsonl(tmp_path / "examples.jsonl"))}
    valley = next(text for text in examples.values() if text.text.startswith("The Arle"))
    assert [pair.question.partition("\n")[0] for pair in valley.pairs] == [
        "Where does the Arle rise?",
        "How long is it?",
        "Who settled the valley?",
    ]
    assert valley.pairs[2].options == ("Salt traders", "Monks", "Shepherds")
    reasoned = [Pair.from_json(pair) for text in read_jsonl(tmp_path / "examples.jsonl") for pair in text["pairs"]]
    (both,) = [pair for pair in reasoned if pair.options and pair.rationale]
    assert both.question.endswith("\nOptions:\n- 10\n- 20\n- 30\nLet's think step by step.")
    assert both.answer == "It began in 1931, and 1951 - 1931 = 20.\nTherefore, the answer is 20"
    assert summary["dropped"] == {
        "pair_with_question_met_before": 1,
        "pair_without_answer": 1,
        "row_without_context": 1,
        "row_without_pairs": 1,
    }
    assert summary["pairs"] == 5 + 2 + 2 + 2  # the row without context is dropped as a row
    dropped = sum(count for reason, count in summary["dropped"].items() if reason.startswith("pair"))
    assert summary["pairs"] == summary["pairs_written"] + summary["pairs_held_out"] + dropped
    places = {line["reason"]: line["where"] for line in read_jsonl(tmp_path / "dropped.jsonl")}
    assert places["row_without_context"].endswith("valley_questions/shard/1.jsonl:2")
    held = list(read_jsonl(tmp_path / "held_out.jsonl"))
    assert {text["source"] for text in held} == {"harbour_quiz"}
    assert "harbour_quiz" not in (tmp_path / "tuning.jsonl").read_text()
    assert len(load_demonstrations(tmp_path / "examples.jsonl")) == summary["examples_written"] == 4
    assert all(len({text.source for text in chain.texts}) == 1 for chain in read_chains(tmp_path / "chains.jsonl"))


def test_a_sequence_is_shots_in_the_wire_format_and_its_spans_and_origins_say_what_is_where(
    tokenizer: Path, tmp_path: Path
):
    tags = row("A text with </CON> in it.", ("Is <QUE> a tag?", "So is <ANS>."), ("And?", "No."))
    put(tmp_path / "tasks" / "a.jsonl", [tags, row("Another text.", ("What?", "That."))])
    collected(tokenizer, tmp_path / "out", [SMALL, tmp_path / "tasks"])
    chains = list(read_chains(tmp_path / "out" / "chains.jsonl"))
    for line, chain in zip(read_jsonl(tmp_path / "out" / "tuning.jsonl"), chains, strict=True):
        text = TrainingText.from_json(line)
        shots = [context_part(each.text) + pairs_part(each.pairs) for each in chain.texts]
        assert text.text == "".join(f"<|begin|>{shot}<|end|>" for shot in shots)
        assert [parse(shot.rpartition("</CON>")[2])[0] for shot in shots] == [list(each.pairs) for each in chain.texts]
        pairs = [pair for each in chain.texts for pair in each.pairs]
        said = [(span.kind, span.of, text.text[span.start : span.end].strip()) for span in text.spans]
        assert [each for each in said if each[0] == "question"] == [
            ("question", number, escape(pair.question)) for number, pair in enumerate(pairs)
        ]
        assert [each for each in said if each[0] == "answer"] == [
            ("answer", number, escape(pair.answer)) for number, pair in enumerate(pairs)
        ]
        for number, (origin, each) in enumerate(zip(text.origins, chain.texts, strict=True)):
            assert text.text[origin.at :].startswith(escape(each.text) + " </CON>")
            assert (origin.document_id, len(origin.checks)) == (each.document_id, len(each.pairs))
            assert ("text", number, context_part(each.text).strip()) in said


def test_of_too_many_examples_those_with_the_most_pairs_stay():
    texts = [AugmentedText(f"t{n}", "x", (Pair("q", "a"),) * (1 + n % 5)) for n in range(50)]
    kept = choose(texts, 25, seed=1)
    assert sorted(len(text.pairs) for text in kept) == [3] * 5 + [4] * 10 + [5] * 10
    assert [text.document_id for text in choose(texts[::-1], 25, seed=1)] == [text.document_id for text in kept]
    assert {t.document_id for t in choose(texts, 25, seed=2)} != {t.document_id for t in kept}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.lists(st.integers(1, 9), min_size=1, max_size=5)), max_size=20))
def test_sequences_hold_all_that_fits_and_no_more(sizes: list[tuple[int, list[int]]]):
    """With a token a character: no example or pair is lost uncounted, none is over the limit, none could be longer."""
    limit = 150
    texts = [
        AugmentedText(str(n), "x" * size, tuple(Pair("q" * q, "a") for q in pairs))
        for n, (size, pairs) in enumerate(sizes)
    ]
    shots = fit(texts, limit, lambda batch: [len(text) for text in batch])
    for text, shot in zip(texts, shots, strict=True):
        if shot is None:
            continue
        assert shot.tokens <= limit and shot.example.pairs == text.pairs[: len(text.pairs) - shot.cut]
    kept = [shot for shot in shots if shot is not None]
    sequences = list(concatenate(kept, limit))
    assert [text for texts in sequences for text in texts] == [shot.example for shot in kept]
    tokens = {shot.example.document_id: shot.tokens for shot in kept}
    filled = [sum(tokens[text.document_id] for text in texts) for texts in sequences]
    assert all(size <= limit for size in filled)
    for size, following in zip(filled, sequences[1:], strict=False):
        assert size + tokens[following[0].document_id] > limit


def test_pairs_that_do_not_fit_a_sequence_are_counted(tokenizer: Path, tmp_path: Path):
    long = [(f"Question {n}?", "An answer of some length. " * 4) for n in range(20)]
    put(tmp_path / "in" / "tasks" / "a.jsonl", [row("A text.", *long), row("word " * 500, ("Q?", "A."))])
    summary = collected(tokenizer, tmp_path / "out", [tmp_path / "in"], seq_length=LIMIT)
    assert summary["dropped"]["pair_of_example_longer_than_a_sequence"] == 1
    assert summary["dropped"]["pair_beyond_a_sequence"] + summary["pairs_written"] == 20
    assert summary["pairs_written"] > 0


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"Q": " What? ", "A": "That. "}, ("What?", "That.")),
        ({"Q": "Which?", "A": "(B)", "options": ["one", "two"]}, ("Which?\nOptions:\n- one\n- two", "two")),
        ({"Q": "Which?", "A": "A", "options": ["A", "B"]}, ("Which?\nOptions:\n- A\n- B", "A")),
        ({"Q": "", "A": "x"}, "pair_without_question"),
        ({"Q": "x", "A": " "}, "pair_without_answer"),
        ({"Q": "x"}, "pair_not_text"),
        ({"Q": "x", "A": 3}, "pair_not_text"),
        ({"Q": "x", "A": "y", "options": "z"}, "pair_not_text"),
        ("x", "pair_not_text"),
    ],
)
def test_an_item_is_a_pair_or_a_reason(item: Any, expected: Any):
    found = pair_of(item)
    assert (found if isinstance(found, str) else (found.question, found.answer)) == expected


def test_bad_input_is_told_in_one_line(tmp_path: Path):
    tokenizer = llama3_like(tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"no dataset 'harbour_quizz'.*did you mean 'harbour_quiz'"):
        collected(tokenizer, tmp_path, held_out=("harbour_quizz",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file in it ends in"):
        collected(tokenizer, tmp_path, [tmp_path / "empty"])
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "a.jsonl").write_text('{"context": "x", "QA_')
    with pytest.raises(UserError, match=r"a\.jsonl:1: not JSON"):
        collected(tokenizer, tmp_path / "out", [tmp_path / "cut"])
    assert not list((tmp_path / "out").glob("*")), "nothing is left behind"
    with pytest.raises(UserError, match="tokenizer: none is named"):
        collect(CollectSettings(), [SMALL], tmp_path)


def test_a_shot_is_as_long_as_it_says():
    text = AugmentedText("x", "abc", (Pair("q", "a"),))
    assert fit([text], 50, lambda batch: [len(each) for each in batch]) == [
        Shot(text, len(" <CON> abc </CON>\n\n<QUE> q <ANS> a </END>") + 2)
    ]
