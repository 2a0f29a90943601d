"""Rendering files: every character of the corpus is used once, in every layout, whatever the order of chains."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from templates_data import PAIRS, covers, said

from data_prep.errors import UserError
from data_prep.readers import read_jsonl, write_jsonl
from data_prep.records import AugmentedText, Chain, Pair, TrainingText
from data_prep.settings import RenderSettings
from data_prep.templates.documents import render_chain
from data_prep.templates.input import sound_chains
from data_prep.templates.render import gaps, render
from data_prep.templates.styles import OURS, load_styles

STYLES = load_styles("en")


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


def texts_of(path: Path) -> list[TrainingText]:
    return [TrainingText.from_json(row) for row in read_jsonl(path)]


LAYOUTS = ("open_book", "closed_book", "both")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_character_of_the_corpus_is_in_a_chain_or_raw_and_never_in_both(tmp_path: Path, layout: str):
    rows, corpus = corpus_of(tmp_path)
    size = len(rows[0]["text"])
    in_chains = [(part(rows, 0, 0, size), part(rows, 1, 10, 20)), (part(rows, 1, 30, size),)]
    left = [part(rows, 1, 20, 30, ()), part(rows, 2, 0, size, ())]
    chains, leftover = write(tmp_path, in_chains, left)
    summary = render(RenderSettings(layout=layout), chains, leftover, corpus, tmp_path / "text")
    used: Counter[tuple[str, int]] = Counter()
    pairs: Counter[str] = Counter()
    augmented, raw = (texts_of(tmp_path / "text" / f"{name}.jsonl") for name in ("augmented", "raw"))
    for text in (*augmented, *raw):
        assert covers(text.spans, len(text.text))
        for span in text.spans:
            if span.kind == "text":
                origin = text.origins[span.of]
                shown = rows[int(origin.document_id[1:])]["text"][origin.start : origin.end]
                assert shown == text.text[span.start : span.end]
                used.update((origin.document_id, place) for place in range(origin.start, origin.end))
            elif span.kind == "answer":
                pairs[f"{text.id}-{span.of}"] += 1
    assert used == Counter({(row["id"], place): 1 for row in rows for place in range(size)})
    assert summary["characters"] == 5 * size == summary["chain_characters"] + summary["raw_characters"]
    assert (summary["chains"], summary["chain_texts"], summary["leftover_texts"]) == (2, 3, 2)
    books = {"open_book": (2, 0), "closed_book": (0, 2), "both": (2, 2)}[layout]
    assert (summary["open_book_documents"], summary["closed_book_documents"]) == books
    assert len({text.id for text in augmented}) == len(augmented) == sum(books)
    sources = [tuple(replace(origin, at=-1) for origin in text.origins) for text in augmented]
    assert set(sources) == set(sources[:: 2 if layout == "both" else 1])
    assert {origin.at >= 0 for text in augmented for origin in text.origins} == {
        "open_book": {True},
        "closed_book": {False},
        "both": {True, False},
    }[layout]
    assert summary["pairs"] == 3 * len(PAIRS) and summary["answers_lost"] == 0
    assert summary["pairs_repeated"] == (3 * len(PAIRS) if layout == "both" else 0)
    assert len(pairs) == summary["pairs"] + summary["pairs_repeated"]
    assert summary["raw_texts"] == len(raw) == 5
    assert all(text.template == "" and text.seed is None for text in raw)
    assert all(text.seed == 1234 and text.template.startswith("en@") for text in augmented)


def test_lost_answers_inversions_and_modes_are_counted(tmp_path: Path):
    rows, corpus = corpus_of(tmp_path)
    chains, leftover = write(tmp_path, [(part(rows, 0, 0, 53),), (part(rows, 1, 0, 53),)], [])
    out = tmp_path / "text"
    summary = render(RenderSettings(mode="questions_only"), chains, leftover, corpus, out)
    assert summary["answers_lost"] == summary["pairs"] == 2 * len(PAIRS)
    assert summary["modes"] == {"questions_only": 2}
    shown = [said(text, "question", of) for text in texts_of(out / "augmented.jsonl") for of in range(len(PAIRS))]
    assert all(shown) and not any(
        span.kind == "answer" for text in texts_of(out / "augmented.jsonl") for span in text.spans
    )
    summary = render(RenderSettings(mode="dialogue", inversion=1), chains, leftover, corpus, out)
    assert (summary["answers_lost"], summary["inverted_documents"], summary["modes"]) == (0, 2, {"dialogue": 2})
    for layout in ("closed_book", "both"):
        with pytest.raises(UserError, match="questions alone would be left"):
            render(RenderSettings(mode="questions_only", layout=layout), chains, leftover, corpus, out)


def test_a_user_s_own_templates(tmp_path: Path):
    rows, corpus = corpus_of(tmp_path)
    chains, leftover = write(tmp_path, [(part(rows, 0, 0, 53, PAIRS[:1]),)], [])
    shutil.copytree(OURS / "en", tmp_path / "own" / "nn")
    (tmp_path / "own" / "nn" / "free.yaml").write_text(
        "version: 7\nanywhere: [['Sp: {question}', 'Sv: {answer}']]\nwith_text: [['Spm: {question}', '{answer}']]\n"
    )
    summary = render(
        RenderSettings(templates=tmp_path / "own", language="nn"), chains, leftover, corpus, tmp_path / "t"
    )
    assert "free 7" in summary["versions"] and summary["templates"].startswith("nn@")
    text = texts_of(tmp_path / "t" / "augmented.jsonl")[0].text
    assert "Sp: What is" in text or "Spm: What is" in text


def test_half_a_surrogate_pair_in_a_chain_is_told_with_its_line(tmp_path: Path):
    rows, corpus = corpus_of(tmp_path)
    chains, leftover = write(tmp_path, [(part(rows, 0, 0, 53),)], [])
    chains.write_text(chains.read_text().replace("It is {question}.", "It is \\ud800."))
    with pytest.raises(UserError, match=r"chains.jsonl:1: not JSON"):
        render(RenderSettings(), chains, leftover, corpus, tmp_path / "text")
    assert not list((tmp_path / "text").glob("*"))


def test_the_same_input_gives_the_same_bytes_whatever_the_order_or_the_shards(tmp_path: Path):
    rows, corpus = corpus_of(tmp_path)
    both = [(part(rows, i, 0, 53),) for i in (0, 1)]
    chains, leftover = write(tmp_path, both, [])
    render(RenderSettings(), chains, leftover, corpus, tmp_path / "one")
    write_jsonl(chains, list(read_jsonl(chains))[::-1])
    render(RenderSettings(), chains, [leftover], corpus, tmp_path / "two")
    one, two = ((tmp_path / name / "augmented.jsonl").read_bytes().splitlines() for name in ("one", "two"))
    assert one == two[::-1]
    for place, line in enumerate(chains.read_bytes().splitlines()[::-1]):
        folder = tmp_path / f"shard{place}"
        folder.mkdir()
        (folder / "chains.jsonl").write_bytes(line)
        render(RenderSettings(), folder / "chains.jsonl", [], corpus, folder / "text")
        assert (folder / "text" / "augmented.jsonl").read_bytes().splitlines() == one[place : place + 1]


def test_samples_of_a_text_stand_in_chains_of_their_own_and_none_of_it_goes_on_raw(tmp_path: Path):
    rows, corpus = corpus_of(tmp_path)
    whole = part(rows, 0, 0, 53)
    in_chains = [(replace(whole, sample=sample),) for sample in (0, 2)]
    chains, leftover = write(tmp_path, in_chains, [replace(whole, pairs=(), sample=1)])  # the check left it no pair
    render(RenderSettings(), chains, leftover, corpus, tmp_path / "text")
    assert len(texts_of(tmp_path / "text" / "augmented.jsonl")) == 2
    raw = texts_of(tmp_path / "text" / "raw.jsonl")
    assert [text.id for text in raw] == ["d1", "d2", "d3", "d4"]


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


def test_what_is_kept_of_a_chain_is_small(tmp_path: Path):
    """Both files are read one row at a time; of a text and its pairs its place and a hash stay."""
    count, pair = 300, Pair("Who? " + "q" * 30_000, "I. " + "a" * 30_000)
    letters = [f"<{number}>" + "x" * 20_000 for number in range(count)]
    write_jsonl(tmp_path / "corpus.jsonl", [{"id": f"d{number}", "text": text} for number, text in enumerate(letters)])
    chains = ((AugmentedText(f"d{number}", text, (pair,)),) for number, text in enumerate(letters[1:], 1))
    paths = write(tmp_path, list(chains), [AugmentedText("d0", letters[0], (pair,))])
    assert paths[0].stat().st_size > 23_000_000
    tracemalloc.start()
    try:
        render(RenderSettings(), *paths, tmp_path / "corpus.jsonl", tmp_path / "text")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000


KEYS = ("id", "texts", "document_id", "text", "pairs", "start", "source", "question", "answer", "options", "checks")
ANYTHING = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5) | st.lists(st.text(max_size=3))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["chain", "text", "pair"]),
    st.dictionaries(st.sampled_from(KEYS), ANYTHING, min_size=1, max_size=3),
)
def test_whatever_stands_in_a_chain_is_rendered_or_told_in_one_line(tmp_path: Path, where: str, change: dict):
    pair = {"question": "Who?", "answer": "I."}
    text = {"document_id": "d", "text": "I.", "pairs": [{**pair, **change} if where == "pair" else pair], "start": 0}
    chain = {"id": "c", "texts": [{**text, **change} if where == "text" else text]}
    path = tmp_path / "chains.jsonl"
    path.write_text(json.dumps({**chain, **change} if where == "chain" else chain))
    try:
        rendered = [text.text for one in sound_chains(path) for text in render_chain(one, STYLES, RenderSettings())]
    except UserError as error:
        assert "\n" not in str(error) and error.mend and "chains.jsonl" in str(error)
    else:
        assert all(covers(text.spans, len(text.text)) for text in rendered)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"text": "x"}, "not a text of a chain"),
        ({"document_id": "d0", "text": 5}, "left.jsonl:1: expected str under 'text', found int"),
        ({"document_id": "d0", "text": "x", "start": "0"}, "left.jsonl:1: expected int under 'start', found str"),
        ({"document_id": "d0", "text": "x", "start": -1}, "left.jsonl:1: 'start' is -1"),
    ],
)
def test_a_leftover_that_is_none_is_named(tmp_path: Path, row: dict, told: str):
    _, corpus = corpus_of(tmp_path)
    chains, leftover = write(tmp_path, [], [])
    write_jsonl(leftover, [row])
    with pytest.raises(UserError, match=told):
        render(RenderSettings(), chains, leftover, corpus, tmp_path / "text")


def test_gaps():
    assert gaps([], 5) == [(0, 5)] and gaps([(0, 5)], 5) == [] and gaps([], 0) == []
    assert gaps([(1, 2), (2, 3)], 5) == [(0, 1), (3, 5)]
