"""The pack table: which pieces of which documents make up each sequence of a dataset.

Policy `concatenate` is Megatron's: documents, in a seeded order, back to back as one stream of T
tokens; sequence k is tokens [k*S, k*S + S] of it, S inputs and one label more, so that each sequence
starts with the token that was the last label of the one before.  Unlike Megatron the last, shorter
sequence is kept: each token but the very first is a label exactly once.

The table depends on the dataset, the sequence length, the policy and the seed, on nothing of a run;
their hash is in the name `PREFIX.pack-<hash>`.  The file, little endian and memory-mapped: a header
(magic, version, sequences N, pieces P), the pieces (int64 [P, 3]: document, offset, length), where
the pieces of sequence k start (int64 [N + 1]), and the xxh3_128 of all bytes before it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash

from data_prep.errors import UserError
from data_prep.indexing.reader import IndexedDatasetReader
from data_prep.manifest import BLOCK_BYTES, Manifest, commit, content_hash, partial_path

PACK_FORMAT_VERSION = 1
MAGIC = b"IPTPACK\0"
HEADER = struct.Struct("<8sQQQ")
DIGEST_BYTES = 16

PackPolicy = Literal["concatenate"]

# Sequences whose pieces are worked out at once: bounds the memory of the pass.
_CHUNK = 1 << 18
_MEND = "delete the file and run `ipt blend plan` again"


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [offset, offset + length) of a document."""

    document: int
    offset: int
    length: int


@dataclass(frozen=True)
class PackTable:
    """A pack table as mapped from its file: `starts` int64 [N + 1] into `rows` int64 [P, 3]."""

    path: Path
    starts: np.ndarray
    rows: np.ndarray

    @property
    def sequences(self) -> int:
        return len(self.starts) - 1

    def pieces(self, sequence: int) -> list[Piece]:
        """The pieces of one sequence, in order; seq_length + 1 tokens, fewer in the last.  IndexError outside."""
        if not 0 <= sequence < self.sequences:
            raise IndexError(f"sequence {sequence} of {self.sequences}")
        rows = self.rows[self.starts[sequence] : self.starts[sequence + 1]]
        return [Piece(*row) for row in rows.tolist()]


def pack_path(prefix: Path, manifest: Manifest, seq_length: int, seed: int, policy: PackPolicy) -> Path:
    """PREFIX.pack-<hash of all that the table depends on>."""
    depends_on = {
        "format_version": PACK_FORMAT_VERSION,
        "data": manifest.data_hash,
        "seq_length": seq_length,
        "seed": seed,
        "policy": policy,
    }
    return prefix.with_name(f"{prefix.name}.pack-{content_hash(depends_on)[:16]}")


def pack(prefix: Path, manifest: Manifest, seq_length: int, seed: int, policy: PackPolicy = "concatenate") -> PackTable:
    """The pack table of a dataset: the one on disk if there is one, else built in one pass over the .idx.

    Errors: a UserError for a dataset of one token, which has no label, and for a damaged table.
    """
    path = pack_path(prefix, manifest, seq_length, seed, policy)
    if not path.exists():
        lengths = IndexedDatasetReader(prefix).document_lengths()
        if lengths.sum() < 2:
            raise UserError(prefix, "a dataset of one token has nothing to predict", "leave it out of the blend")
        _write(path, lengths, seq_length, seed)
    return open_pack(path, check_bytes=True)


def open_pack(path: Path, check_bytes: bool = False) -> PackTable:
    """Maps a pack table; `check_bytes` reads it whole and holds it against the hash at its end.

    Errors: a UserError naming the file if it is missing, cut short or changed.
    """
    if not path.is_file():
        raise UserError(path, "no such pack table", "run `ipt blend plan` again")
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(HEADER.size).ljust(HEADER.size, b"\0")
    magic, version, sequences, pieces = HEADER.unpack(header)
    if magic != MAGIC or version != PACK_FORMAT_VERSION:
        raise UserError(path, f"not a pack table of version {PACK_FORMAT_VERSION}", _MEND)
    hashed = HEADER.size + 24 * pieces + 8 * (sequences + 1)
    if size != hashed + DIGEST_BYTES:
        raise UserError(path, f"{size} bytes where its header announces {hashed + DIGEST_BYTES}", _MEND)
    raw = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    if check_bytes and _hash_file(path, hashed) != raw[hashed:].tobytes():
        raise UserError(path, "damaged: its bytes do not fit the hash at its end", _MEND)
    rows, starts = np.split(raw[HEADER.size : hashed].view("<i8"), [3 * pieces])
    return PackTable(path, starts, rows.reshape(-1, 3))


def document_order(documents: int, seed: int) -> np.ndarray:
    """A seeded permutation of [0, documents), int64; the same on every machine and in every version of numpy."""
    first = np.uint64(xxhash.xxh3_64_intdigest(f"documents\x1f{seed}".encode()))
    return np.argsort(_splitmix64(np.arange(documents, dtype=np.uint64) + first), kind="stable")


def concatenate(lengths: np.ndarray, order: np.ndarray, seq_length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Policy `concatenate`: documents of `lengths` [documents] in `order`, at least two tokens together.

    Yields, some sequences at a time, the number of pieces of each (int64 [n]) and the pieces
    (int64 [p, 3]: document, offset, length).
    """
    order = order[lengths[order] > 0]
    ends = np.cumsum(lengths[order])
    total = int(ends[-1])
    sequences = -(-(total - 1) // seq_length)
    for chunk in range(0, sequences, _CHUNK):
        begin = np.arange(chunk, min(chunk + _CHUNK, sequences)) * seq_length
        end = np.minimum(begin + seq_length + 1, total)
        first = np.searchsorted(ends, begin, side="right")
        last = np.searchsorted(ends, end - 1, side="right")
        counts = last - first + 1
        # One row a piece: its sequence within the chunk, and its place in the order of documents.
        sequence = np.repeat(np.arange(len(begin)), counts)
        place = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts) + first[sequence]
        document = order[place]
        document_start = ends[place] - lengths[document]
        start = np.maximum(begin[sequence], document_start)
        stop = np.minimum(end[sequence], ends[place])
        yield counts, np.stack((document, start - document_start, stop - start), axis=1)


def _splitmix64(values: np.ndarray) -> np.ndarray:
    """splitmix64 of each value, uint64 [n], modulo 2^64; see `data_prep.blend.order`."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _write(path: Path, lengths: np.ndarray, seq_length: int, seed: int) -> None:
    partial = partial_path(path)
    counts = [np.zeros(1, np.int64)]
    with partial.open("wb") as file:
        file.write(bytes(HEADER.size))
        for counted, rows in concatenate(lengths, document_order(len(lengths), seed), seq_length):
            counts.append(counted)
            file.write(np.ascontiguousarray(rows, "<i8"))
        starts = np.cumsum(np.concatenate(counts))
        file.write(starts.astype("<i8", copy=False))
        hashed = file.tell()
        file.seek(0)
        file.write(HEADER.pack(MAGIC, PACK_FORMAT_VERSION, len(starts) - 1, int(starts[-1])))
    with partial.open("ab") as file:
        file.write(_hash_file(partial, hashed))
    commit(partial, path)


def _hash_file(path: Path, size: int) -> bytes:
    """xxh3_128 of the first `size` bytes of a file."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while size and (block := file.read(min(size, BLOCK_BYTES))):
            hasher.update(block)
            size -= len(block)
    return hasher.digest()
