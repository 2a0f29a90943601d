"""The .bin/.idx format: byte for byte Megatron's, and a file that is not is refused by name."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.errors import UserError
from data_prep.indexing.layout import optimal_dtype
from data_prep.indexing.ragged import ragged
from data_prep.indexing.reader import IndexedDatasetReader
from data_prep.indexing.writer import IndexedDatasetWriter


@pytest.fixture(scope="module")
def megatron() -> Any:
    """megatron-core's module of the same purpose: the oracle."""
    pytest.importorskip("megatron.core")
    return importlib.import_module("megatron.core.datasets.indexed_dataset")


@pytest.fixture(scope="module")
def verify_with_megatron(megatron: Any) -> Callable[[Path], dict[str, Any]]:
    return importlib.import_module("megatron_ipt.mcore.indexed_dataset").verify_with_megatron


def documents(vocab_size: int) -> list[np.ndarray]:
    generator = np.random.default_rng(vocab_size)
    return [generator.integers(0, vocab_size, length) for length in generator.integers(1, 50, 100)]


@pytest.mark.parametrize("vocab_size", [1000, 65_499, 65_500, 128_256])
def test_files_are_those_of_megatrons_builder(tmp_path: Path, megatron: Any, write_dataset, vocab_size: int) -> None:
    write_dataset(tmp_path / "ours", [document.tolist() for document in documents(vocab_size)], vocab_size=vocab_size)
    dtype = megatron.DType.optimal_dtype(vocab_size)
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for document in documents(vocab_size):
        builder.add_document(document, [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    assert optimal_dtype(vocab_size) == np.dtype(dtype).name
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"theirs.{suffix}").read_bytes()


def test_megatron_reads_what_we_read(
    tmp_path: Path, write_dataset, verify_with_megatron, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_dataset(tmp_path / "d", [document.tolist() for document in documents(1000)])
    found = verify_with_megatron(tmp_path / "d")
    assert found == {"documents": 100, "tokens": manifest.tokens, "dtype": "uint16", "compared": 100}
    right = IndexedDatasetReader.document
    monkeypatch.setattr(IndexedDatasetReader, "document", lambda self, index: right(self, index) + (index == 7))
    with pytest.raises(UserError, match="other tokens in document 7"):
        verify_with_megatron(tmp_path / "d")


def test_of_many_documents_a_spread_sample_is_compared(
    tmp_path: Path, write_dataset, verify_with_megatron, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path / "d", [document.tolist() for document in documents(1000)])
    seen: list[int] = []
    right = IndexedDatasetReader.document
    monkeypatch.setattr(IndexedDatasetReader, "document", lambda self, index: seen.append(index) or right(self, index))
    for count in (2, 3, 12, 99):
        seen.clear()
        assert verify_with_megatron(tmp_path / "d", count)["compared"] == count == len(set(seen))
        assert seen == sorted(seen)
        assert (seen[0], seen[-1]) == (0, 99)
        assert max(np.diff(seen)) <= 2 * (98 // max(1, count - 2) + 1)
    lengths = IndexedDatasetReader.document_lengths
    monkeypatch.setattr(
        IndexedDatasetReader, "document_lengths", lambda self: lengths(self) + (np.arange(self.documents) == 41)
    )
    with pytest.raises(UserError, match="document 41 with other bounds"):
        verify_with_megatron(tmp_path / "d", 2)


def test_documents_of_several_sequences_and_of_none(tmp_path: Path, megatron: Any, verify_with_megatron) -> None:
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "d.bin"), dtype=np.int32)
    builder.add_document(np.array([1, 2, 3, 70_000]), [1, 3])
    builder.add_document(np.array([]), [])
    builder.add_document(np.array([5]), [1])
    builder.finalize(str(tmp_path / "d.idx"))
    reader = IndexedDatasetReader(tmp_path / "d")
    reader.check_layout()
    assert [reader.document(index).tolist() for index in range(3)] == [[1, 2, 3, 70_000], [], [5]]
    assert reader.document_lengths().tolist() == [4, 0, 1]
    assert reader.read(0, 1, 2).tolist() == [2, 3]
    assert verify_with_megatron(tmp_path / "d")["documents"] == 3


def test_a_view_outlives_its_reader(tmp_path: Path, write_dataset) -> None:
    write_dataset(tmp_path / "d", [[1, 2, 3], [4, 0]])
    view, lengths = (
        IndexedDatasetReader(tmp_path / "d").document(1),
        IndexedDatasetReader(tmp_path / "d").sequence_lengths,
    )
    gc.collect()
    assert (view.tolist(), int(lengths.sum())) == ([4, 0], 5)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1


@pytest.mark.parametrize("access", [(2, 0, 1), (-1, 0, 1), (0, 2, 2), (0, -1, 1)])
def test_reading_outside_is_an_error(tmp_path: Path, write_dataset, access: tuple[int, int, int]) -> None:
    write_dataset(tmp_path / "d", [[1, 2, 3], [4, 0]])
    with pytest.raises(IndexError):
        IndexedDatasetReader(tmp_path / "d").read(*access)


def test_a_file_cut_short_is_named(tmp_path: Path, write_dataset) -> None:
    write_dataset(tmp_path / "d", [[1, 2, 3], [4, 0]])
    for suffix in ("idx", "bin"):
        path = tmp_path / f"d.{suffix}"
        content = path.read_bytes()
        for size in range(len(content)):
            path.write_bytes(content[:size])
            with pytest.raises(UserError, match=rf"d\.{suffix}"):
                IndexedDatasetReader(tmp_path / "d")
        path.write_bytes(content)


@pytest.mark.parametrize("position", [0, 9, 17])
def test_a_foreign_header_is_named(tmp_path: Path, write_dataset, position: int) -> None:
    write_dataset(tmp_path / "d", [[1, 2, 3]])
    content = bytearray((tmp_path / "d.idx").read_bytes())
    content[position] = 99
    (tmp_path / "d.idx").write_bytes(content)
    with pytest.raises(UserError, match=r"d\.idx: not a Megatron index"):
        IndexedDatasetReader(tmp_path / "d")


def test_offsets_that_do_not_follow_are_found(tmp_path: Path, write_dataset) -> None:
    write_dataset(tmp_path / "d", [[1, 2, 3], [4, 5], [6, 7]])
    content = bytearray((tmp_path / "d.idx").read_bytes())
    content[34 + 3 * 4 + 8] ^= 2
    (tmp_path / "d.idx").write_bytes(content)
    with pytest.raises(UserError, match=r"d\.idx: sequence 1 does not follow"):
        IndexedDatasetReader(tmp_path / "d").check_layout()


@pytest.mark.parametrize("document", [[], [-1], [1000]])
def test_ids_outside_the_vocabulary_are_refused_and_leave_nothing(tmp_path: Path, document: list[int]) -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1000\)"), IndexedDatasetWriter(tmp_path / "d", 1000) as writer:
        writer.add_documents(ragged([np.array([5], np.int64), np.array(document, np.int64)]))
    assert not list(tmp_path.iterdir())
