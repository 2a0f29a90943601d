"""Writes PREFIX.bin and PREFIX.idx byte for byte as Megatron does, as a stream, and puts them in place whole.

Each document is one sequence of Megatron's.
"""

from __future__ import annotations

from array import array
from collections.abc import Buffer, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from data_prep.errors import UserError
from data_prep.indexing.layout import (
    DTYPE_CODES,
    HEADER,
    IDX_VERSION,
    MAGIC,
    TokenDtype,
    bin_path,
    idx_path,
    optimal_dtype,
)
from data_prep.indexing.ragged import Ragged
from data_prep.indexing.reader import IndexedDatasetReader
from data_prep.locks import lock
from data_prep.manifest import BlockHasher, FileHashes, commit, partial_path

# Documents whose offsets are computed at once: bounds the memory of the index pass.
_CHUNK = 1 << 20
# What is copied at once: it stays in a processor's cache between being read, hashed and written [bytes].
_COPY_BYTES = 1 << 18


class IndexedDatasetWriter:
    """A context that writes one dataset; leaving it without `commit` leaves nothing behind.

    `add_documents` as often as needed, then `finish` (hashes), then `commit` (renames, .idx last).
    """

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        self.prefix, self.vocab_size = prefix, vocab_size
        self.dtype: TokenDtype = optimal_dtype(vocab_size)
        self.tokens = 0
        self._lengths = array("i")
        self._hasher = BlockHasher()
        self._stack = ExitStack()

    @property
    def documents(self) -> int:
        return len(self._lengths)

    def __enter__(self) -> Self:
        """Errors: a UserError if another process is writing here."""
        self._bin = partial_path(bin_path(self.prefix)).open("ab")
        if not lock(self._bin):  # until it is closed
            self._bin.close()
            raise UserError(self.prefix, "another run is writing this dataset", "wait for it, or end it")
        self._bin.truncate(0)
        for path in (bin_path(self.prefix), idx_path(self.prefix)):
            self._stack.callback(partial_path(path).unlink, missing_ok=True)
        self._stack.enter_context(self._bin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add_documents(self, documents: Ragged) -> None:
        """Appends documents of one token or more, each id in [0, vocab_size).  Errors: a ValueError outside that."""
        tokens, lengths = documents.values, documents.lengths()
        if not lengths.size:
            return
        if lengths.min() < 1 or tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise ValueError(f"a document needs one token or more, each in [0, {self.vocab_size})")
        target = np.dtype(self.dtype).newbyteorder("<")
        data = tokens.view(target) if tokens.itemsize == target.itemsize else tokens.astype(target)
        self._bin.write(data)
        self._hasher.update(data)
        self._lengths.frombytes(lengths.astype("i4").tobytes())
        self.tokens += data.size

    def add_dataset(self, reader: IndexedDatasetReader) -> None:
        """Appends all documents of a dataset of the same dtype, whose ids were held against its vocabulary before."""
        buffer = memoryview(bytearray(_COPY_BYTES))
        with bin_path(reader.prefix).open("rb", buffering=0) as file:  # a map's pages would count as memory
            while count := file.readinto(buffer):
                self._bin.write(buffer[:count])
                self._hasher.update(buffer[:count])
        for _, lengths in reader.chunks():
            self._lengths.frombytes(lengths.astype("i4").tobytes())
        self.tokens += reader.tokens

    def finish(self) -> tuple[FileHashes, FileHashes]:
        """Ends .bin, writes .idx beside it, and gives the hashes of both; nothing is in place yet."""
        self._bin.flush()
        with partial_path(idx_path(self.prefix)).open("wb") as file:
            lengths = np.frombuffer(self._lengths, np.int32)
            idx = write_idx(file, lambda: iter([lengths]), len(lengths), self.dtype)
        return self._hasher.finish(), idx

    def commit(self, durable: bool = True) -> None:
        """Renames .bin and then .idx into place, so that an .idx never stands before its .bin."""
        for path in (bin_path(self.prefix), idx_path(self.prefix)):
            commit(partial_path(path), path, durable)


def write_idx(
    file: BinaryIO, lengths: Callable[[], Iterator[np.ndarray]], documents: int, dtype: TokenDtype
) -> FileHashes:
    """The index of documents whose lengths [tokens] come in parts, twice; in bounded memory."""
    hasher = BlockHasher()

    def put(data: Buffer) -> None:
        file.write(data)
        hasher.update(data)

    put(HEADER.pack(MAGIC, IDX_VERSION, DTYPE_CODES[dtype], documents, documents + 1))
    for part in lengths():
        put(np.ascontiguousarray(part, "<i4"))
    start = 0
    for part in lengths():
        for chunk in range(0, len(part), _CHUNK):
            sizes = part[chunk : chunk + _CHUNK].astype(np.int64) * np.dtype(dtype).itemsize
            ends = start + np.cumsum(sizes)
            put((ends - sizes).astype("<i8", copy=False))
            start = int(ends[-1])
    for chunk in range(0, documents + 1, _CHUNK):
        put(np.arange(chunk, min(chunk + _CHUNK, documents + 1), dtype="<i8"))
    return hasher.finish()
