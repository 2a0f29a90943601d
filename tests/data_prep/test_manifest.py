"""A manifest checks itself, and a damaged, edited or newer one is refused by name."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import orjson
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_prep.errors import UserError
from data_prep.manifest import BlockHasher, FileHashes, Manifest, TokenizerIdentity, manifest_path, read_manifest

DOCUMENTS = [[5, 6, 0], [7, 0]]


def test_reads_back_what_was_written(tmp_path: Path, write_dataset) -> None:
    manifest = write_dataset(tmp_path / "v1.5", DOCUMENTS)
    assert manifest_path(tmp_path / "v1.5").name == "v1.5.manifest.json"
    assert read_manifest(tmp_path / "v1.5") == manifest
    assert (manifest.documents, manifest.tokens, manifest.dtype) == (2, 5, "uint16")


def test_every_flipped_byte_is_found_or_means_the_same(tmp_path: Path, write_dataset) -> None:
    manifest = write_dataset(tmp_path / "d", DOCUMENTS)
    path = manifest_path(tmp_path / "d")
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        try:
            assert read_manifest(tmp_path / "d") == manifest, position
        except UserError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)


def test_edited_manifest_is_refused(tmp_path: Path, write_dataset) -> None:
    write_dataset(tmp_path / "d", DOCUMENTS)
    path = manifest_path(tmp_path / "d")
    path.write_bytes(path.read_bytes().replace(b'"text_bytes": 20', b'"text_bytes": 10'))
    with pytest.raises(UserError, match=r"d\.manifest\.json: damaged or edited"):
        read_manifest(tmp_path / "d")


def test_newer_format_is_refused_by_name(tmp_path: Path, write_dataset) -> None:
    write_dataset(tmp_path / "d", DOCUMENTS)
    path = manifest_path(tmp_path / "d")
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "format_version": 4}))
    with pytest.raises(UserError, match="format version 4 is newer than 3"):
        read_manifest(tmp_path / "d")


def test_the_first_format_is_still_read_and_its_data_has_the_same_identity(tmp_path: Path, write_dataset) -> None:
    """Format 1 had neither side-car hashes nor an encoder."""
    manifest = write_dataset(tmp_path / "d", DOCUMENTS)
    old = {**manifest.model_dump(mode="json", exclude={"lineage", "spans", "encoder"}), "format_version": 1}
    hashed = xxhash.xxh3_128_hexdigest(orjson.dumps(old, option=orjson.OPT_SORT_KEYS))
    manifest_path(tmp_path / "d").write_bytes(orjson.dumps({**old, "hash": hashed}))
    found = read_manifest(tmp_path / "d")
    assert (found.format_version, found.data_hash, found.lineage) == (1, manifest.data_hash, None)


def test_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.manifest\.json: no manifest"):
        read_manifest(tmp_path / "nothing")


@pytest.mark.parametrize(
    "change",
    [{"tokens": 6}, {"documents": 6}, {"dtype": "int32"}, {"documents": -1}, {"unknown": 1}, {"dtype": "float32"}],
)
def test_counts_that_cannot_be_are_refused(tmp_path: Path, write_dataset, change: dict) -> None:
    content = write_dataset(tmp_path / "d", DOCUMENTS).model_dump()
    with pytest.raises(ValidationError):
        Manifest.model_validate({**content, **change})


@pytest.mark.parametrize("change", [{"eod_id": 10}, {"prepend_bos": True}, {"eod_id": None}])
def test_policies_that_cannot_be_are_refused(change: dict) -> None:
    identity = {"fingerprint": "f", "vocab_size": 10, "bos_id": None, "eos_id": 1, "eod_id": 1}
    with pytest.raises(ValidationError):
        TokenizerIdentity(**{**identity, "prepend_bos": False, "append_eod": True, **change})


def test_data_hash_tells_tokens_and_their_meaning(tmp_path: Path, write_dataset) -> None:
    same = [write_dataset(tmp_path / name, DOCUMENTS).data_hash for name in "ab"]
    other = write_dataset(tmp_path / "c", [[5, 6], [0, 7, 0]]).data_hash
    policy = write_dataset(tmp_path / "e", DOCUMENTS, append_eod=False).data_hash
    assert same[0] == same[1]
    assert len({same[0], other, policy}) == 3


@given(st.binary(max_size=100), st.lists(st.integers(0, 40), max_size=5), st.integers(1, 30))
def test_blocks_do_not_depend_on_how_bytes_arrive(data: bytes, cuts: list[int], block_bytes: int) -> None:
    whole, parts = BlockHasher(block_bytes), BlockHasher(block_bytes)
    whole.update(data)
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, stop in itertools.pairwise(bounds):
        parts.update(data[start:stop])
    assert whole.finish() == parts.finish()


def test_damage_in_a_middle_block_is_named(tmp_path: Path) -> None:
    path, data = tmp_path / "file", os.urandom(100)
    hasher = BlockHasher(10)
    hasher.update(data)
    hashes = hasher.finish()
    path.write_bytes(data[:55] + bytes([data[55] ^ 8]) + data[56:])
    hashes.check(path, every_block=False)
    with pytest.raises(UserError, match="file: block 5, from byte 50 on"):
        hashes.check(path, every_block=True)
    with pytest.raises(ValidationError):
        FileHashes(bytes=100, block_bytes=10, blocks=hashes.blocks[1:])
