"""Policy chains over stretches of the order: the same whoever packs them, killed or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_dataset import save_tokenizer, training_text, write_rows

from data_prep.indexing import index
from data_prep.indexing.reader import IndexedDatasetReader
from data_prep.indexing.spans import SpansReader
from data_prep.packing import PackTable, open_pack, stretches
from data_prep.packing.chains import ChainPacker
from data_prep.packing.documents import documents_in_order
from data_prep.packing.stretches import ChainsTask, pack_chains
from data_prep.packing.table import PackWriter
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import IndexSettings

DOCUMENTS, STRETCH, SEQ_LENGTH, SEED = 200, 37, 120, 5


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chains of one to three texts, of unlike lengths."""
    folder = tmp_path_factory.mktemp("stretches")
    rng = np.random.default_rng(5)
    chains = [
        Chain(f"c{n}", tuple(AugmentedText(f"{n}:{i}", "Die Wand. " * int(rng.integers(1, 9)), (Pair("Was?", "Das."),))
                             for i in range(int(rng.integers(1, 4)))))
        for n in range(DOCUMENTS)
    ]  # fmt: skip
    save_tokenizer(folder / "tokenizer")
    rows = write_rows(folder / "rows.jsonl", [training_text(chain, seed=1).to_json() for chain in chains])
    index(IndexSettings(encoder="tokenizers"), [rows], folder / "tokenizer", folder / "d")
    return folder / "d"


def packed(prefix: Path, path: Path, workers: int = 0) -> PackTable:
    task = ChainsTask(prefix, True, SEQ_LENGTH, SEED, None, path, STRETCH)
    with PackWriter(path) as writer:
        writer.finish(pack_chains(task, DOCUMENTS, writer, workers))
    return open_pack(path, check_bytes=True)


def test_each_is_packed_by_itself_and_none_is_lost(prefix: Path, tmp_path: Path) -> None:
    """Beside a packer for each 37 documents of the order."""
    table = packed(prefix, tmp_path / "table")
    reader = IndexedDatasetReader(prefix)
    order = np.concatenate([numbers for numbers, _ in documents_in_order(reader, SEED)])
    expected, reports = [], []
    for start in range(0, DOCUMENTS, STRETCH):
        numbers = order[start : start + STRETCH]
        with PackWriter(tmp_path / "alone") as writer:
            packer = ChainPacker(SEQ_LENGTH, SpansReader(prefix), writer)
            packer.add([(numbers, reader.lengths_of(numbers))])
            reports.append(packer.finish())
            writer.finish(reports[-1])
        alone = open_pack(tmp_path / "alone")
        expected += [alone.pieces(number) for number in range(alone.sequences)]
    found = [table.pieces(number) for number in range(table.sequences)]
    assert found == expected
    assert {piece.document for pieces in found for piece in pieces} == set(range(DOCUMENTS))
    assert table.report.tokens == sum(piece.length for pieces in found for piece in pieces)
    assert table.report.padding == table.sequences * (SEQ_LENGTH + 1) - table.report.tokens
    assert table.report.labels == sum(report.labels for report in reports)
    dropped = [reason for report in reports for reason, count in report.dropped.items() for _ in range(count)]
    assert sorted(dropped) == sorted(r for r, count in table.report.dropped.items() for _ in range(count))
    assert list(tmp_path.glob("table*")) == [tmp_path / "table"]


def test_workers_change_nothing(prefix: Path, tmp_path: Path) -> None:
    packed(prefix, tmp_path / "one")
    packed(prefix, tmp_path / "two", workers=2)
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()


def test_who_was_killed_goes_on(prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the stretches that are there, but for one that a power cut has torn."""
    packed(prefix, tmp_path / "straight")
    begun: list[int] = []
    into = stretches._Packer.into

    def into_or_dies(self, writer, number):
        begun.append(number)
        if number == dies_at:
            raise KeyboardInterrupt
        return into(self, writer, number)

    monkeypatch.setattr(stretches._Packer, "into", into_or_dies)
    dies_at = 3
    with pytest.raises(KeyboardInterrupt):
        packed(prefix, tmp_path / "killed")
    parts = sorted(tmp_path.glob("killed*"))
    assert [path.name for path in parts] == [f"killed.part-0000{number}" for number in range(3)]
    parts[1].write_bytes(parts[1].read_bytes()[:-1])
    begun.clear()
    dies_at = -1
    packed(prefix, tmp_path / "killed")
    assert begun == [1, 3, 4, 5]
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "straight").read_bytes()
