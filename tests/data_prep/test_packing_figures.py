"""Policy chains on drawn lengths: padding and what is cut, counted from the table; and memory stays bounded."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from data_prep.indexing.spans import CLASSES, Runs, SpansReader, SpansWriter
from data_prep.packing import PackTable, chains, open_pack
from data_prep.packing.chains import ChainPacker
from data_prep.packing.table import PackWriter

DOCUMENTS, TEXTS, PAIRS, PAIR_TOKENS, SEQ_LENGTH = 2000, 3, 3, 12, 512
TEXT, QUESTION, ANSWER = (CLASSES.index(name) for name in ("text", "question", "answer"))


def write_spans(folder: Path, median: float, sigma: float) -> np.ndarray:
    """Spans of chains whose texts have log-normal lengths [tokens]; gives the lengths of the chains."""
    rng = np.random.default_rng(7)
    kinds = np.array([TEXT, *[QUESTION, ANSWER] * PAIRS] * TEXTS, "u1")
    of = np.full(len(kinds), -1, "<i4")
    of[kinds == TEXT], of[kinds != TEXT] = np.arange(TEXTS), np.repeat(np.arange(TEXTS * PAIRS), 2)
    lengths = np.full((DOCUMENTS, len(kinds)), PAIR_TOKENS // 2)
    lengths[:, kinds == TEXT] = np.maximum(8, rng.lognormal(np.log(median), sigma, (DOCUMENTS, TEXTS)))
    with SpansWriter(folder / "d") as writer:
        for ends in np.cumsum(lengths, axis=1).astype("<i4"):
            writer.add(Runs(np.array([len(kinds)]), ends, of, kinds))
        writer.finish()
        writer.commit()
    return lengths.sum(axis=1)


def packed(folder: Path, lengths: np.ndarray) -> PackTable:
    with PackWriter(folder / "table") as writer:
        packer = ChainPacker(SEQ_LENGTH, SpansReader(folder / "d"), writer)
        packer.add([(np.arange(DOCUMENTS), lengths)])
        writer.finish(packer.finish())
    return open_pack(folder / "table", check_bytes=True)


# Medians of the texts, with pairs between: chains of a third of a sequence, of half of one, and of one.  The bounds are
# half as much again as what is reached, and far below what is left without filling, 8 to 48 %.
@pytest.mark.parametrize(("median", "sigma", "most"), [(30, 0.5, 0.0045), (60, 0.35, 0.0062), (120, 0.9, 0.0125)])
def test_padding_is_below_two_per_cent_and_what_was_cut_is_counted(
    tmp_path: Path, median: float, sigma: float, most: float
) -> None:
    lengths = write_spans(tmp_path, median, sigma)
    table = packed(tmp_path, lengths)
    pieces = defaultdict[int, list[tuple[int, int]]](list)
    tokens = 0
    for number in range(table.sequences):
        for piece in table.pieces(number):
            pieces[piece.document].append((piece.offset, piece.length))
            tokens += piece.length
    assert 1 - tokens / (table.sequences * (SEQ_LENGTH + 1)) < most
    whole = sum(pieces[document] == [(0, length)] for document, length in enumerate(lengths.tolist()))
    assert table.report.cut_documents == DOCUMENTS - whole
    assert table.report.padding == table.sequences * (SEQ_LENGTH + 1) - tokens


def test_sequences_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that memory does not grow with the dataset."""
    lengths = write_spans(tmp_path, 30, 0.5)
    expected = packed(tmp_path, lengths)
    expected_pieces = [expected.pieces(number) for number in range(expected.sequences)]
    written: list[int] = []
    add = PackWriter.add

    def noted(writer: PackWriter, counts: np.ndarray, rows: np.ndarray) -> None:
        written.append(len(counts))
        add(writer, counts, rows)

    monkeypatch.setattr(chains, "_SEQUENCES", 50)
    monkeypatch.setattr(PackWriter, "add", noted)
    table = packed(tmp_path, lengths)
    assert set(written[:-1]) == {50} and len(written) == -(-table.sequences // 50)
    assert [table.pieces(number) for number in range(table.sequences)] == expected_pieces
