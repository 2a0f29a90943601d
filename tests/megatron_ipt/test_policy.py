"""Which labels count, by policy and packing, against plain loops over tokens; what segments and positions are."""

from __future__ import annotations

import random
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.blend import plan
from data_prep.errors import UserError
from data_prep.indexing.spans import LETTERS, Runs, SpansReader, SpansWriter
from data_prep.packing import Piece
from data_prep.packing.labels import count_labels
from data_prep.settings import BlendSettings
from megatron_ipt.data import stream as streams
from megatron_ipt.data.policy import Counted
from megatron_ipt.data.stream import BlendStream

# Documents token by token, in the letters of PREFIX.spans: t(ext), q(uestion), a(nswer), . for template, c(ontrol);
# then what counts under `pairs`, and under `answers`.
WRITTEN_OUT = (
    ("c.tt.qq.aa.q.a.cc.t.q.a.c", "0000111111111111000111111", "0000000011000100000000100"),
    ("ctt.qq.a.tt", "00011111000", "00000001000"),
    ("cqqaac", "011111", "000111"),
    ("ttttc", "00000", "00000"),
    ("tt.q.a..", "00111111", "00000100"),
)


def write_spans(prefix: Path, manifest: Any, documents: list[str]) -> None:
    with SpansWriter(prefix) as writer:
        for letters in documents:
            runs = [(kind, len(list(run))) for kind, run in groupby(letters)]
            ends = np.cumsum([length for _, length in runs]).astype("<i4")
            kinds = np.array([LETTERS.index(kind) for kind, _ in runs], "u1")
            writer.add(Runs(np.array([len(runs)]), ends, np.full(len(runs), -1, "<i4"), kinds))
        hashes = writer.finish()
        writer.commit()
    manifest.model_copy(update={"spans": hashes}).write(prefix)


def dataset(prefix: Path, documents: list[str], write_dataset: Any) -> Path:
    """A token is 1 + its number within the document, the last one 0."""
    manifest = write_dataset(prefix, [[*range(1, len(letters)), 0] for letters in documents])
    write_spans(prefix, manifest, documents)
    return prefix


def plainly(letters: str, policy: str) -> list[bool]:
    """The policy token by token, as its docstring says it."""
    found = []
    for place, kind in enumerate(letters):
        if policy == "answers":
            found.append(kind == "a" or (kind == "c" and place > 0 and letters[place - 1] == "a"))
            continue
        head, tail = letters[:place].rstrip(".c"), letters[place:].lstrip(".c")
        gap = letters[len(head) : len(letters) - len(tail)]
        follows, leads = head[-1:] in tuple("qa"), tail[:1] in tuple("qa")
        closes = follows and "c" not in letters[len(head) : place] and ("c" in gap or not tail)
        framed = (follows and leads) or (leads and kind == ".") or (closes and not leads)
        found.append(kind in "qa" or (kind != "t" and framed))
    return found


def test_policies_of_written_out_documents(tmp_path: Path, write_dataset: Any) -> None:
    documents = [letters for letters, _, _ in WRITTEN_OUT]
    prefix = dataset(tmp_path / "d", documents, write_dataset)
    for policy, column in (("pairs", 1), ("answers", 2)):
        counted = Counted(prefix, "d", policy)  # type: ignore[arg-type]
        for document, row in enumerate(WRITTEN_OUT):
            expected = [letter == "1" for letter in row[column]]
            assert counted.of([Piece(document, 0, len(row[0]))]).tolist() == expected, (policy, row[0])
            assert plainly(row[0], policy) == expected


def test_policies_of_any_pieces(tmp_path: Path, write_dataset: Any) -> None:
    generator = random.Random(5)
    documents = [
        "".join(generator.choice("tqa.c") * generator.randint(1, 4) for _ in range(generator.randint(1, 12)))
        for _ in range(300)
    ]
    prefix = dataset(tmp_path / "d", documents, write_dataset)
    for policy in ("pairs", "answers"):
        counted = Counted(prefix, "d", policy)  # type: ignore[arg-type]
        pieces, expected = [], []
        for document, letters in enumerate(documents):
            start = generator.randrange(len(letters))
            piece = Piece(document, start, generator.randint(1, len(letters) - start))
            pieces.append(piece)
            expected.append(plainly(letters, policy)[start : start + piece.length])
            assert counted.of([piece]).tolist() == expected[-1], (policy, letters, piece)
        whole = sum(plainly(letters, policy).count(True) for letters in documents)
        assert count_labels(SpansReader(prefix), policy) == whole  # type: ignore[arg-type]
        for first in range(0, 300, 7):
            together = [counts for part in expected[first : first + 7] for counts in part]
            assert counted.of(pieces[first : first + 7]).tolist() == together


def blend(folder: Path, seq_length: int = 16) -> Path:
    sources = {"one": {"prefix": "one", "weight": 1}, "two": {"prefix": "two", "weight": 1}}
    plan(BlendSettings(sources=sources, seq_length=seq_length, period=16), folder / "out", folder)
    return folder / "out" / "blend.json"


@pytest.fixture
def two_sources(tmp_path: Path, write_dataset: Any) -> Path:
    generator = random.Random(7)
    for name in ("one", "two"):
        documents = ["ct" + "".join(generator.choice("tqa.") * 3 for _ in range(generator.randint(1, 6))) + "c"] * 20
        dataset(tmp_path / name, documents, write_dataset)
    return tmp_path


def with_fields(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """Sources of format 1 of blend.json have neither `loss` nor `policy`: give them to the second one."""
    read = streams._open

    def opened(source: Any) -> Any:
        return read(source.model_copy(update=fields) if source.name == "two" else source)

    monkeypatch.setattr(streams, "_open", opened)


def test_a_label_counts_by_the_policy_of_its_source(two_sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = blend(two_sources)
    everything = [BlendStream(path).sample(index) for index in range(16)]
    with_fields(monkeypatch, loss="pairs")
    counted = Counted(two_sources / "two", "two", "pairs")
    masked = 0
    for sample, whole in zip(map(BlendStream(path).sample, range(16)), everything, strict=True):
        assert (sample.tokens.tolist(), sample.pieces) == (whole.tokens.tolist(), whole.pieces)
        if sample.source == "one":
            assert sample.loss_mask.tolist() == whole.loss_mask.tolist()
            continue
        labels = counted.of(sample.pieces)[1:]
        assert sample.loss_mask.tolist() == [*labels.tolist(), *[0.0] * (16 - len(labels))]
        masked += int(whole.loss_mask.sum() - sample.loss_mask.sum())
    assert masked > 0


def test_no_label_reaches_over_an_edge_of_chains(two_sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = blend(two_sources)
    with_fields(monkeypatch, policy="chains")
    edges = 0
    for sample in map(BlendStream(path).sample, range(16)):
        places = [(piece.document, piece.offset + i) for piece in sample.pieces for i in range(piece.length)]
        follows = [b == (a[0], a[1] + 1) for a, b in pairwise(places)]
        expected = follows if sample.source == "two" else [True] * len(follows)
        assert sample.loss_mask.tolist() == [*map(float, expected), *[0.0] * (16 - len(expected))]
        edges += expected.count(False)
    assert edges > 0


def test_a_source_without_spans_has_no_pairs(
    two_sources: Path, monkeypatch: pytest.MonkeyPatch, write_dataset: Any
) -> None:
    (two_sources / "two.spans").unlink()
    write_dataset(two_sources / "two", [[1, 2, 0]] * 20)
    path = blend(two_sources)
    with_fields(monkeypatch, loss="pairs")
    with pytest.raises(UserError, match=r"source 'two': its loss is of 'pairs', and .*two has no spans.*; index"):
        BlendStream(path)


def test_spans_of_another_dataset_are_refused(two_sources: Path, tmp_path: Path) -> None:
    (tmp_path / "two.spans").write_bytes((tmp_path / "two.spans").read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match=r"two\.spans"):
        Counted(tmp_path / "two", "two", "pairs")


def test_segments_are_the_documents_and_positions_restart_with_them(two_sources: Path) -> None:
    path = blend(two_sources)
    for plain, reset in zip(
        map(BlendStream(path).sample, range(16)),
        map(BlendStream(path, reset_position_ids=True).sample, range(16)),
        strict=True,
    ):
        owners = [piece.document for piece in plain.pieces for _ in range(piece.length)][:16]
        numbers = [number for number, (_, run) in enumerate(groupby(owners)) for _ in run]
        padding = [numbers[-1] + 1] * (16 - len(numbers))
        assert plain.segments.tolist() == reset.segments.tolist() == [*numbers, *padding]
        assert plain.segments.dtype == np.int64
        assert plain.position_ids.tolist() == list(range(16))
        assert reset.position_ids.tolist() == [
            place for _, run in groupby(plain.segments.tolist()) for place, _ in enumerate(run)
        ]
        assert plain.source_index == ("one", "two").index(plain.source)


def test_a_text_repeated_with_later_pairs_is_one_segment_and_a_new_pass_another() -> None:
    pieces = [Piece(4, 0, 3), Piece(4, 7, 2), Piece(4, 0, 2), Piece(5, 0, 1)]
    assert streams._segments(pieces, 10).tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 3, 3]
    assert streams._breaks(pieces) == [3, 5, 7]
