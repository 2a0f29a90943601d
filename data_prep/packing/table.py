"""PREFIX.pack-<hash>: the file of a pack table, written as a stream and memory-mapped.

Little endian: a header (magic, version, sequences N, pieces P, bytes of the report), the pieces (u32 [P, 3]: document,
offset, length), padding to 8 bytes, where the pieces of sequence k start (i64 [N + 1]), the report (JSON), and the
xxh3_128 of all bytes before it.
"""

from __future__ import annotations

import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self

import numpy as np
import orjson
import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_prep.errors import UserError
from data_prep.manifest import BLOCK_BYTES, commit, partial_path

PACK_FORMAT_VERSION = 3
MAGIC = b"IPTPACK\0"
HEADER = struct.Struct("<8sQQQQ")
DIGEST_BYTES = 16
_MEND = "delete the file and run `ipt blend plan` again"


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [offset, offset + length) of a document."""

    document: int
    offset: int
    length: int


class PackReport(BaseModel):
    """What became of a dataset's documents in one epoch of its sequences."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    documents: int = Field(0, ge=0, description="documents with a piece in some sequence")
    tokens: int = Field(0, ge=0, description="tokens of all pieces")
    labels: int = Field(0, ge=0, description="tokens that are predicted: those that follow another in their sequence")
    padding: int = Field(0, ge=0, description="positions of all sequences that no token stands at")
    cut_documents: int = Field(0, ge=0, description="documents that were cut into several items")
    repeated_tokens: int = Field(0, ge=0, description="tokens of texts that stand again before more of their pairs")
    dropped: dict[str, int] = Field(default_factory=dict, description="what is in no sequence, by reason")


@dataclass(frozen=True)
class PackTable:
    """A pack table as mapped from its file: `starts` int64 [N + 1] into `rows` uint32 [P, 3]."""

    path: Path
    starts: np.ndarray
    rows: np.ndarray
    report: PackReport

    @property
    def sequences(self) -> int:
        return len(self.starts) - 1

    def pieces(self, sequence: int) -> list[Piece]:
        """The pieces of one sequence, in order; seq_length + 1 tokens together, or fewer.  IndexError outside."""
        if not 0 <= sequence < self.sequences:
            raise IndexError(f"sequence {sequence} of {self.sequences}")
        rows = self.rows[self.starts[sequence] : self.starts[sequence + 1]]
        return [Piece(*row) for row in rows.tolist()]


class PackWriter:
    """A context that writes one table; leaving it without `finish` leaves nothing behind."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        self._hasher = xxhash.xxh3_128()
        self.sequences = self.pieces = 0

    def __enter__(self) -> Self:
        self._stack.callback(partial_path(self._path).unlink, missing_ok=True)
        self._file = self._stack.enter_context(partial_path(self._path).open("wb"))
        self._file.write(bytes(HEADER.size))
        # Where sequences start is known as a stream, and stands behind the pieces.
        self._starts = self._stack.enter_context(TemporaryFile(dir=self._path.parent))
        self._starts.write(bytes(8))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, counts: np.ndarray, rows: np.ndarray) -> None:
        """Some more sequences: the number of pieces of each, [n], and the pieces (document, offset, length), [p, 3]."""
        if rows.size and int(rows.max()) >= 1 << 32:
            raise UserError(self._path, f"a number of {int(rows.max())} does not fit into 32 bits", "cut the dataset")
        self._file.write(np.ascontiguousarray(rows, "<u4"))
        self._starts.write((self.pieces + np.cumsum(counts)).astype("<i8"))
        self.sequences += len(counts)
        self.pieces += len(rows)

    def finish(self, report: PackReport) -> None:
        """Writes what stands behind the pieces, and puts the file in place."""
        self._file.write(bytes(-12 * self.pieces % 8))
        self._starts.seek(0)
        while block := self._starts.read(1 << 20):
            self._file.write(block)
        told = orjson.dumps(report.model_dump())
        self._file.write(told)
        hashed = self._file.tell()
        self._file.seek(0)
        self._file.write(HEADER.pack(MAGIC, PACK_FORMAT_VERSION, self.sequences, self.pieces, len(told)))
        self._file.close()
        partial = partial_path(self._path)
        with partial.open("ab") as file:
            file.write(_hash_file(partial, hashed))
        commit(partial, self._path)


def open_pack(path: Path, check_bytes: bool = False) -> PackTable:
    """Maps a pack table; `check_bytes` reads it whole and holds it against the hash at its end.

    Errors: a UserError naming the file if it is missing, cut short or changed.
    """
    if not path.is_file():
        raise UserError(path, "no such pack table", "run `ipt blend plan` again")
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(HEADER.size).ljust(HEADER.size, b"\0")
    magic, version, sequences, pieces, told = HEADER.unpack(header)
    if magic != MAGIC or version != PACK_FORMAT_VERSION:
        raise UserError(path, f"not a pack table of version {PACK_FORMAT_VERSION}", _MEND)
    first = HEADER.size + 12 * pieces + -12 * pieces % 8
    second = first + 8 * (sequences + 1)
    hashed = second + told
    if size != hashed + DIGEST_BYTES:
        raise UserError(path, f"{size} bytes where its header announces {hashed + DIGEST_BYTES}", _MEND)
    raw = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    if check_bytes and _hash_file(path, hashed) != raw[hashed:].tobytes():
        raise UserError(path, "damaged: its bytes do not fit the hash at its end", _MEND)
    try:
        report = PackReport.model_validate_json(raw[second:hashed].tobytes())
    except ValidationError as error:
        raise UserError(path, "damaged: its report cannot be read", _MEND) from error
    rows = raw[HEADER.size : HEADER.size + 12 * pieces].view("<u4").reshape(-1, 3)
    return PackTable(path, raw[first:second].view("<i8"), rows, report)


def _hash_file(path: Path, size: int) -> bytes:
    """xxh3_128 of the first `size` bytes of a file."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while size and (block := file.read(min(size, BLOCK_BYTES))):
            hasher.update(block)
            size -= len(block)
    return hasher.digest()
