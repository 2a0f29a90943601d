"""The plan tells what packing made of a source, counted here from the table; what is lost much of is flagged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from small_dataset import save_tokenizer, training_text, write_rows

from data_prep.blend import PlanRow, plan, read_blend
from data_prep.blend.packed import packing_line
from data_prep.errors import UserError
from data_prep.indexing import index
from data_prep.indexing.spans import SpansReader
from data_prep.manifest import read_manifest
from data_prep.packing import PackTable, open_pack
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import BlendSettings, IndexSettings

SEQ_LENGTH = 200


def chain(number: int, words: int, texts: int = 2, pairs: int = 2) -> dict[str, Any]:
    of = [
        AugmentedText(f"doc-{number}-{place}", "Die Wand. " * words, (Pair("Was?", "Das."),) * pairs)
        for place in range(texts)
    ]
    return training_text(Chain(f"c{number}", tuple(of)), seed=1).to_json()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`long`: some texts of half a sequence and more, some longer than one; `few`: a pair in a thousand words;
    `large`: documents of six tenths of a sequence; `plain`: text without spans.
    """
    folder = tmp_path_factory.mktemp("packed")
    save_tokenizer(folder / "tokenizer")
    rows = {
        "long": [chain(n, (5, 20, 40)[n % 3]) for n in range(30)],
        "few": [chain(n, 1000, 1, 1) for n in range(3)],
        "large": [chain(n, 15, 1, 0) for n in range(30)],
        "plain": [{"id": f"p{n}", "text": "Die Wand. " * 30} for n in range(30)],
    }
    for name, lines in rows.items():
        settings = IndexSettings(encoder="tokenizers")
        index(settings, [write_rows(folder / f"{name}.jsonl", lines)], folder / "tokenizer", folder / name)
    return folder


def planned(folder: Path, name: str, split: float | None = None, **of: Any) -> tuple[PlanRow, PackTable]:
    """The row of a source, and its table; the file says the same as the row."""
    of = {"prefix": name, "kind": "augmented", "weight": 1, **of}
    values: dict[str, Any] = {"sources": {name: of}, "seq_length": SEQ_LENGTH, "period": 8, "train_samples": 9}
    values["split"] = split and {"validation": split}
    (row,) = plan(BlendSettings.model_validate(values), folder / "out", folder).rows
    (written,) = orjson.loads((folder / "out/plan.json").read_bytes())["rows"]
    assert written["packing"] == row.packing and tuple(written["flags"]) == row.flags
    (source,) = read_blend(folder / "out/blend.json").sources
    return row, open_pack(source.prefix.with_name(source.pack))


def places(table: PackTable) -> list[list[tuple[int, int]]]:
    """(document, token) of all places of each sequence."""
    return [
        [(p.document, p.offset + i) for p in table.pieces(number) for i in range(p.length)]
        for number in range(table.sequences)
    ]


def test_chains_are_counted_as_the_table_has_them(folder: Path) -> None:
    row, table = planned(folder, "long", policy="chains")
    there, spans = places(table), SpansReader(folder / "long")
    found = row.packing
    assert found is not None
    tokens = sum(map(len, there))
    assert found["padding_share"] == pytest.approx(1 - tokens / (len(there) * (SEQ_LENGTH + 1)))
    everywhere = {place for sequence in there for place in sequence}
    answers = [(d, a) for d in range(30) for a, _, kind, _ in spans.document(d) if kind == "answer"]
    lost = sum(place not in everywhere for place in answers)
    assert found["dropped"] == {"pairs of a text longer than a sequence": lost} and found["all_pairs"] == len(answers)
    assert f"{lost / len(answers):.1%} of its pairs are in no sequence" in " ".join(row.flags)
    cut = sum(len({n for n, s in enumerate(there) for d, _ in s if d == document}) > 1 for document in range(30))
    line = packing_line(found)
    assert line.startswith(f"{found['padding_share']:.1%} padding; {cut} of 30 documents cut; ")
    assert line.endswith(f"in no sequence: {lost} pairs of a text longer than a sequence")


def test_documents_that_fill_a_sequence_badly_are_flagged(folder: Path) -> None:
    row, table = planned(folder, "large", policy="chains")
    share = 1 - sum(map(len, places(table))) / (table.sequences * (SEQ_LENGTH + 1))
    assert share > 0.2
    assert row.flags[-1].startswith(f"{share:.1%} of its positions are padding")
    assert not any("padding" in flag for flag in planned(folder, "large")[0].flags)


def test_documents_of_both_sides_are_told_and_flagged(folder: Path) -> None:
    row, table = planned(folder, "long", split=0.5)
    assert row.packing is not None
    mixed = row.packing["dropped"]["documents of raw documents of both sides"]
    other = row.packing["dropped"]["documents of the other side of the split"]
    assert mixed and mixed + other + len({d for s in places(table) for d, _ in s}) == 30
    line = packing_line(row.packing)
    assert f"in no sequence: {mixed} documents of raw documents of both sides" in line and "other side" not in line
    assert row.flags[-1] == f"{mixed / 30:.1%} of its documents are of both sides of the split, and on none"


def test_what_is_drawn_and_what_it_is_worth_count_the_same_tokens(folder: Path) -> None:
    """In less than an epoch, so that nothing is repeated; with an edge in each sequence of `large`."""
    for policy in ("chains", "concatenate"):
        for name in ("long", "large"):
            row, _ = planned(folder, name, policy=policy)
            assert row.epochs is not None and row.epochs < 1
            assert row.effective_tokens == pytest.approx(row.tokens_drawn, abs=0.51)


def test_labels_that_count_are_counted_and_flagged_where_few(folder: Path) -> None:
    spans, tokens = SpansReader(folder / "few"), read_manifest(folder / "few").tokens
    runs = [run for document in range(3) for run in spans.document(document)]
    answers = sum(stop - start for start, stop, kind, _ in runs if kind == "answer")
    row, _ = planned(folder, "few", loss="answers")
    assert row.packing is not None
    assert answers / tokens <= row.packing["label_share"] <= (answers + 3) / tokens  # and the token behind each
    assert row.flags[-1].endswith("of its tokens count under the loss 'answers'")
    assert "of the tokens count as labels" in packing_line(row.packing)
    assert not any("count under" in flag for flag in planned(folder, "long", loss="pairs")[0].flags)


@pytest.mark.parametrize(
    ("of", "told"),
    [
        ({"loss": "pairs"}, r"sources\.plain\.loss: it has no spans, so which tokens are of 'pairs' is not known"),
        (
            {"loss": "answers", "kind": "raw"},
            r"sources\.plain\.loss: .* of 'answers' is not known; index rendered text",
        ),
        (
            {"policy": "chains"},
            r"sources\.plain\.policy: it has no spans, so nothing tells its questions from its texts",
        ),
    ],
)
def test_a_source_without_spans_is_refused_where_they_are_needed(folder: Path, of: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        planned(folder, "plain", **of)
    planned(folder, "plain", kind="raw", policy="chains")
