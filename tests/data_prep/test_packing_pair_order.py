"""Documents that begin and end with a text: which text a pair is about is told by the lineage, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_dataset import save_tokenizer, vouch, write_rows

from data_prep.indexing import index
from data_prep.indexing.layout import lineage_path
from data_prep.indexing.spans import SpansReader
from data_prep.manifest import read_manifest
from data_prep.packing import PackSpec, PackTable, pack
from data_prep.packing.chains import PAIRS_UNTOLD
from data_prep.packing.pair_order import pair_order
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import IndexSettings, RenderSettings
from data_prep.templates.documents import render_chain
from data_prep.templates.render import styles_of

# Pairs of the texts of each document; those that begin or end with none are what checks leave.
COUNTS = ((2, 0), (0, 2), (1, 0, 2, 0), (0, 0, 1, 0), (0, 1, 1), (2, 2, 0), (2, 2), (0, 1, 0), (0, 0), (1,))
SEQ_LENGTH = 330


def made(number: int, counts: tuple[int, ...]) -> Chain:
    """Each text about half a sequence long."""
    texts = (
        AugmentedText(
            f"doc-{number}-{place}", f"{number}/{place} " + "Die Wand. " * 15, (Pair("Was?", "Das."),) * count
        )
        for place, count in enumerate(counts)
    )
    return Chain(f"c{number}", tuple(texts))


@pytest.fixture(scope="module", params=["pairs behind", "pairs first"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    """40 documents as `ipt data render` writes them."""
    folder, inverted = tmp_path_factory.mktemp("order"), request.param == "pairs first"
    save_tokenizer(folder / "tokenizer")
    settings = RenderSettings(mode="classic", inversion=float(inverted))
    styles = styles_of(settings)
    chains = [made(number, COUNTS[number % len(COUNTS)]) for number in range(40)]
    rows = [document.text.to_json() for chain in chains for document in render_chain(chain, styles, settings)]
    source = write_rows(folder / "rows.jsonl", rows)
    index(IndexSettings(encoder="tokenizers"), [source], folder / "tokenizer", folder / "d")
    return folder / "d", inverted


def packed(prefix: Path) -> PackTable:
    return pack(prefix, read_manifest(prefix), PackSpec(SEQ_LENGTH, 1, "chains"))


def about(number: int, pair: int) -> int:
    """The text that a pair is about, by counting."""
    return next(text for text, end in enumerate(np.cumsum(COUNTS[number % len(COUNTS)])) if pair < end)


def test_each_pair_stands_with_the_text_it_is_about(dataset: tuple[Path, bool]) -> None:
    prefix, _ = dataset
    table, spans = packed(prefix), SpansReader(prefix)
    seen = 0
    for sequence in range(table.sequences):
        there = {(p.document, p.offset + i) for p in table.pieces(sequence) for i in range(p.length)}
        for document in {document for document, _ in there}:
            runs = list(spans.document(document))
            texts = {of: range(start, stop) for start, stop, kind, of in runs if kind == "text"}
            for start, stop, kind, of in runs:
                if kind == "answer" and (document, start) in there:
                    needed = [*texts[about(document, of)], *range(start, stop)]
                    assert all((document, token) in there for token in needed), (document, of)
                    seen += 1
    assert seen == 4 * sum(map(sum, COUNTS))
    assert table.report.dropped == {}


def test_the_order_is_that_of_the_rendering(dataset: tuple[Path, bool]) -> None:
    prefix, inverted = dataset
    order = pair_order(prefix, SpansReader(prefix), has_lineage=True)
    # Where pairs stand behind, a document ends with a text if its last one has none; else if its first one has none.
    doubtful = [n for n in range(40) if sum(c := COUNTS[n % len(COUNTS)]) and not (c[0] if inverted else c[-1])]
    assert doubtful
    assert order.pairs_first.tolist() == (doubtful if inverted else [])
    assert order.untold.tolist() == []
    assert {order.has_pairs_first(document) for document in doubtful} == {inverted}


def test_without_a_lineage_the_pairs_that_do_not_fit_are_dropped_for_that_reason(dataset: tuple[Path, bool]) -> None:
    prefix, inverted = dataset
    known, kept = packed(prefix), lineage_path(prefix).read_bytes()
    vouch(prefix, lineage=None)
    lineage_path(prefix).unlink()
    table = packed(prefix)
    lineage_path(prefix).write_bytes(kept)
    assert table.path != known.path
    lost = table.report.dropped
    # Long ones of those above; of two texts, both and the pairs that fit stand in one sequence.
    expected = sum(
        sum(counts)
        for counts in COUNTS
        if sum(counts) and len(counts) > 2 and not (counts[0] if inverted else counts[-1])
    )
    assert lost[PAIRS_UNTOLD] == 4 * expected
    assert table.report.documents == 40
    vouch(prefix, lineage={"bytes": 0, "blocks": []})


def test_pairs_beside_another_text_than_theirs_tell_nothing(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "tokenizer")
    render = RenderSettings(mode="classic", inversion=0.0)
    (document,) = render_chain(made(0, (0, 2, 0)), styles_of(render), render)
    row = document.text.to_json()
    row["origins"][0]["checks"], row["origins"][1]["checks"] = ["", ""], []
    source = write_rows(tmp_path / "rows.jsonl", [row])
    index(IndexSettings(encoder="tokenizers"), [source], tmp_path / "tokenizer", tmp_path / "d")
    order = pair_order(tmp_path / "d", SpansReader(tmp_path / "d"), has_lineage=True)
    assert (order.untold.tolist(), order.has_pairs_first(0)) == ([0], None)
