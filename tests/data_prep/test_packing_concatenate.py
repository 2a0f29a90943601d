"""The pack table: every token but the first is a label exactly once, as Megatron cuts, and damage is found."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import UserError
from data_prep.order import Permutation
from data_prep.packing import PackSpec, Piece, open_pack, pack, pack_path
from data_prep.packing.concatenate import concatenate
from data_prep.packing.splits import SIDES
from data_prep.packing.table import HEADER, PACK_FORMAT_VERSION, PackReport, PackWriter
from data_prep.settings import SplitSettings

LENGTHS = st.lists(st.integers(0, 20), min_size=1, max_size=40)


def order_of(documents: int, seed: int) -> np.ndarray:
    return Permutation(documents, seed, "documents", 0).many(0, documents)


def sequences_of(lengths: list[int], seed: int, seq_length: int, chunk: int = 7) -> list[list[tuple[int, int]]]:
    """The (document, offset) of every token of every sequence, the documents given `chunk` at a time."""
    array, order = np.array(lengths), order_of(len(lengths), seed)

    def documents() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(order), chunk):
            yield order[start : start + chunk], array[order[start : start + chunk]]

    sequences = []
    for counts, rows in concatenate(documents(), seq_length):
        for part in np.split(rows, np.cumsum(counts)[:-1]):
            sequences.append([(d, offset + i) for d, offset, length in part.tolist() for i in range(length)])
    return sequences


@given(LENGTHS, st.integers(0, 5), st.integers(1, 30), st.integers(1, 50))
def test_every_token_but_the_first_is_a_label_once(lengths, seed, seq_length, chunk) -> None:
    sequences = sequences_of(lengths, seed, seq_length, chunk)
    order = order_of(len(lengths), seed).tolist()
    stream = [(document, offset) for document in order for offset in range(lengths[document])]
    assert [label for sequence in sequences for label in sequence[1:]] == stream[1:]
    assert all(len(sequence) == seq_length + 1 for sequence in sequences[:-1])
    assert all(2 <= len(sequence) <= seq_length + 1 for sequence in sequences[-1:])
    for before, after in itertools.pairwise(sequences):
        assert after[0] == before[-1]


def test_whole_sequences_are_those_of_megatron() -> None:
    helpers = pytest.importorskip("megatron.core.datasets.helpers")
    lengths = np.random.default_rng(0).integers(1, 60, 500).astype(np.int32)
    order = order_of(500, 3)
    theirs = helpers.build_sample_idx(lengths, order.astype(np.int32), 32, 1, int(lengths.sum()), True, True)
    starts = [sequence[0] for sequence in sequences_of(lengths.tolist(), 3, 32)]
    # Megatron may point behind the last token of a document where we point at the next one's first.
    expected = [(order[place], offset) for place, offset in theirs[:-1].tolist()]
    assert len(starts) - len(expected) in (0, 1)
    assert starts[: len(expected)] == expected


def test_documents_enter_in_an_order_that_never_changes(tmp_path: Path, write_dataset) -> None:
    manifest = write_dataset(tmp_path / "d", [[document, 0] for document in range(1, 9)])
    table = pack(tmp_path / "d", manifest, PackSpec(100, 1234))
    order = [piece.document for piece in table.pieces(0)]
    assert order == [Permutation(8, 1234, "documents", 0)[place] for place in range(8)]
    # Pinned: another value here would silently repack every dataset under its old name.
    assert order == [3, 2, 1, 5, 0, 4, 6, 7]


def test_table_is_built_once_and_named_by_all_it_depends_on(tmp_path: Path, write_dataset) -> None:
    prefix = tmp_path / "d"
    manifest = write_dataset(prefix, [[1, 2, 3], [4, 5, 0]])
    table = pack(prefix, manifest, PackSpec(2, 1))
    written = table.path.stat().st_mtime_ns
    assert pack(prefix, manifest, PackSpec(2, 1)).path.stat().st_mtime_ns == written
    assert table.path.name.startswith("d.pack-")
    assert not list(tmp_path.glob("*.partial"))
    other = write_dataset(tmp_path / "e", [[1, 2, 3], [4, 5, 1]])
    specs = [PackSpec(2, 1), PackSpec(3, 1), PackSpec(2, 2), PackSpec(2, 1, "chains")]
    specs += [
        PackSpec(2, 1, split=SplitSettings(validation=0.1, seed=seed), side=side) for seed in (1, 2) for side in SIDES
    ]
    paths = {pack_path(prefix, manifest, spec) for spec in specs}
    assert len(paths | {pack_path(prefix, other, specs[0])}) == 9


def test_source_under_one_sequence_is_one_sequence(tmp_path: Path, write_dataset) -> None:
    manifest = write_dataset(tmp_path / "d", [[1, 2, 0]])
    table = pack(tmp_path / "d", manifest, PackSpec(100, 1))
    assert table.sequences == 1
    assert table.pieces(0) == [Piece(0, 0, 3)]
    with pytest.raises(IndexError):
        table.pieces(1)


def test_one_token_is_refused(tmp_path: Path, write_dataset) -> None:
    manifest = write_dataset(tmp_path / "d", [[1]])
    with pytest.raises(UserError, match="nothing to predict"):
        pack(tmp_path / "d", manifest, PackSpec(4, 1))


def test_a_damaged_table_is_not_packed_with(tmp_path: Path, write_dataset) -> None:
    manifest = write_dataset(tmp_path / "d", [[1, 2, 3], [4, 5, 0]])
    path = pack(tmp_path / "d", manifest, PackSpec(2, 1)).path
    content = bytearray(path.read_bytes())
    content[HEADER.size] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged: its bytes do not fit the hash at its end; delete the file"):
        pack(tmp_path / "d", manifest, PackSpec(2, 1))


def test_a_table_of_another_version_is_refused(tmp_path: Path, write_dataset) -> None:
    """Though it is whole, and of the same form."""
    manifest = write_dataset(tmp_path / "d", [[1, 2, 3], [4, 5, 0]])
    path = pack(tmp_path / "d", manifest, PackSpec(2, 1)).path
    for version in (PACK_FORMAT_VERSION - 1, PACK_FORMAT_VERSION + 1):
        content = bytearray(path.read_bytes()[:-16])
        content[8:16] = version.to_bytes(8, "little")
        path.write_bytes(bytes(content) + xxhash.xxh3_128_digest(bytes(content)))
        with pytest.raises(UserError, match=f"not a pack table of version {PACK_FORMAT_VERSION}; delete the file"):
            open_pack(path, check_bytes=True)


def test_a_number_beyond_32_bits_is_refused(tmp_path: Path) -> None:
    most = (1 << 32) - 1
    with PackWriter(tmp_path / "most") as writer:
        writer.add(np.array([1]), np.array([[most, 0, 2]]))
        writer.finish(PackReport())
    assert open_pack(tmp_path / "most").pieces(0) == [Piece(most, 0, 2)]
    told = "a number of 4294967296 does not fit into 32 bits"
    with pytest.raises(UserError, match=told), PackWriter(tmp_path / "more") as writer:
        writer.add(np.array([1]), np.array([[0, most + 1, 2]]))
    assert not list(tmp_path.glob("more*"))


def test_damage_is_found_and_named(tmp_path: Path, write_dataset) -> None:
    manifest = write_dataset(tmp_path / "d", [[1, 2, 3], [4, 5, 0]])
    path = pack(tmp_path / "d", manifest, PackSpec(2, 1)).path
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(UserError, match=path.name):
            open_pack(path, check_bytes=True)
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=path.name):
            open_pack(path)
