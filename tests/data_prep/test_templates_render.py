"""Rendering: no answer lost, spans cover the text, every character of the corpus is used once."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.errors import UserError
from data_prep.readers import read_jsonl, write_jsonl
from data_prep.records import AugmentedText, Chain, Pair, TrainingText
from data_prep.settings import RenderSettings
from data_prep.synthesis.wire import THINK_LINE, recognise
from data_prep.templates.render import gaps, render, render_chain
from data_prep.templates.styles import FIELDS, fill_pair, load_styles, pair_kind

STYLES = load_styles("en", "classic")
OPTIONS = "\nOptions:\n- red\n- blue\n- {answer}"
THOUGHT = "It is dark.\nTherefore, the answer is blue"
PAIRS = (
    recognise("What is {answer}, {text}?", "It is {question}."),
    recognise("Which?" + OPTIONS, "blue"),
    recognise("Why?\n" + THINK_LINE, THOUGHT),
    recognise("Which and why?" + OPTIONS + "\n" + THINK_LINE, THOUGHT),
)


def test_every_style_of_every_kind_keeps_question_options_and_answer():
    assert [pair_kind(pair) for pair in PAIRS] == ["free", "options", "rationale", "options_rationale"]
    for pair in PAIRS:
        for style in STYLES.lists[pair_kind(pair)]:
            for line in STYLES.lists["option_lines"]:
                parts = list(fill_pair(style, line, pair))
                assert [part for kind, part in parts if kind == "answer"] == [pair.answer]
                asked = "".join(part for kind, part in parts if kind == "question")
                assert pair.question.partition("\n")[0] in asked
                assert all(option in asked for option in pair.options)
                assert "??" not in "".join(part for _, part in parts)


TEXTS = st.text(min_size=1, max_size=60)
CHAINS = st.lists(st.tuples(TEXTS, st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4)), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(CHAINS, st.integers(0, 99))
def test_spans_cover_the_text_and_hold_every_text_and_answer(raw, seed: int):
    texts = tuple(
        AugmentedText(f"d{place}", text, tuple(recognise(*pair) for pair in pairs))
        for place, (text, pairs) in enumerate(raw)
    )
    result = render_chain(Chain("c", texts), STYLES, seed)
    assert [span.start for span in result.spans] == [0, *(span.end for span in result.spans[:-1])]
    assert result.spans[-1].end == len(result.text) and all(span.start < span.end for span in result.spans)
    shown = [(span.kind, result.text[span.start : span.end]) for span in result.spans]
    assert [part for kind, part in shown if kind == "text"] == [text.text for text in texts]
    wanted = [pair.answer for text in texts for pair in text.pairs]
    assert [part for kind, part in shown if kind == "answer"] == wanted
    assert result.document_ids == tuple(text.document_id for text in texts)


def corpus_of(tmp_path: Path) -> tuple[list[dict], Path]:
    rows = [{"id": f"d{i}", "text": f"<{i}>" + "abcdefghij" * 5} for i in range(5)]
    write_jsonl(tmp_path / "corpus.jsonl", rows)
    return rows, tmp_path / "corpus.jsonl"


def part(rows: list[dict], number: int, start: int, end: int, pairs: tuple[Pair, ...] = PAIRS) -> AugmentedText:
    return AugmentedText(f"d{number}", rows[number]["text"][start:end], pairs, start, end)


def write(tmp_path: Path, chains: list[tuple[AugmentedText, ...]], left: list[AugmentedText]) -> tuple[Path, Path]:
    write_jsonl(tmp_path / "chains.jsonl", [Chain(f"c{i}", texts).to_json() for i, texts in enumerate(chains)])
    write_jsonl(tmp_path / "left.jsonl", [text.to_json() for text in left])
    return tmp_path / "chains.jsonl", tmp_path / "left.jsonl"


def test_every_character_of_the_corpus_is_in_a_chain_or_raw_and_never_in_both(tmp_path: Path):
    rows, corpus = corpus_of(tmp_path)
    size = len(rows[0]["text"])
    in_chains = [(part(rows, 0, 0, size), part(rows, 1, 10, 20)), (part(rows, 1, 30, size),)]
    left = [part(rows, 1, 20, 30, ()), part(rows, 2, 0, size, ())]
    chains, leftover = write(tmp_path, in_chains, left)
    summary = render(RenderSettings(), chains, leftover, corpus, tmp_path / "text")
    used: Counter[tuple[str, int]] = Counter()
    for row in read_jsonl(tmp_path / "text" / "raw.jsonl"):
        text = TrainingText.from_json(row)
        identifier, _, span = text.id.partition(":")
        start, end = map(int, span.split("-")) if span else (0, size)
        assert rows[int(identifier[1:])]["text"][start:end] == text.text
        used.update((identifier, place) for place in range(start, end))
    for texts in in_chains:
        used.update((text.document_id, place) for text in texts for place in range(text.start, text.end))
    assert used == Counter({(row["id"], place): 1 for row in rows for place in range(size)})
    assert summary["characters"] == 5 * size == summary["chain_characters"] + summary["raw_characters"]
    assert (summary["chains"], summary["chain_texts"], summary["raw_texts"], summary["leftover_texts"]) == (2, 3, 5, 2)


def test_the_same_input_gives_the_same_bytes_whatever_the_order_of_chains(tmp_path: Path):
    rows, corpus = corpus_of(tmp_path)
    both = [(part(rows, i, 0, 53),) for i in (0, 1)]
    chains, leftover = write(tmp_path, both, [])
    render(RenderSettings(), chains, leftover, corpus, tmp_path / "one")
    write_jsonl(chains, list(read_jsonl(chains))[::-1])
    render(RenderSettings(), chains, [leftover], corpus, tmp_path / "two")
    one, two = ((tmp_path / name / "augmented.jsonl").read_bytes().splitlines() for name in ("one", "two"))
    assert one == two[::-1]


def test_draws_of_different_axes_are_independent():
    """The public code restarts one seed for every choice: 5,264 triples of 185,659 that independence gives."""
    axes = ("texts", "lead_ins", "separators", "free")
    drawn = set()
    for number in range(3000):
        text = AugmentedText(f"d{number}", "x", PAIRS[:1])
        drawn.add(render_chain(Chain("c", (text,)), STYLES, 1).template.partition("; ")[2])
    cells = 1
    for axis in axes:
        cells *= len(STYLES.lists[axis])
    expected = cells * (1 - (1 - 1 / cells) ** 3000)
    assert len(drawn) > 0.95 * expected


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("text", "are not what was synthesized"),
        ("twice", "are used twice"),
        ("leftover", "are used twice"),
        ("foreign", "1 documents of the chains are not in it, 'other'"),
    ],
)
def test_chains_of_other_documents_and_texts_used_twice_are_refused(tmp_path: Path, change: str, told: str):
    rows, corpus = corpus_of(tmp_path)
    good = part(rows, 0, 0, 20)
    in_chains, left = [(good,)], []
    if change == "text":
        in_chains = [(AugmentedText("d0", "other text", PAIRS, 0, 10),)]
    elif change == "twice":
        in_chains = [(good,), (part(rows, 0, 19, 30),)]
    elif change == "leftover":
        left = [part(rows, 0, 0, 20, ())]
    else:
        in_chains = [(AugmentedText("other", "x", PAIRS, 0, 1),)]
    chains, leftover = write(tmp_path, in_chains, left)
    with pytest.raises(UserError, match=told):
        render(RenderSettings(), chains, [leftover], corpus, tmp_path / "text")
    assert not (tmp_path / "text" / "summary.json").exists()


def test_styles_are_many_distinct_and_well_formed():
    assert all(
        len(set(STYLES.lists[name])) >= least for name, least in (("free", 12), ("options", 6), ("rationale", 6))
    )
    assert STYLES.lists.keys() == FIELDS.keys() and STYLES.name == "en/classic@1"
    with pytest.raises(UserError, match="there are none for language 'xx'"):
        load_styles("xx", "classic")


def test_gaps():
    assert gaps([], 5) == [(0, 5)] and gaps([(0, 5)], 5) == [] and gaps([], 0) == []
    assert gaps([(1, 2), (2, 3)], 5) == [(0, 1), (3, 5)]
