"""The side-car of an indexed dataset, PREFIX.manifest.json: what is true of the whole dataset, and hashes of its bytes.

`.bin` and `.idx` say nothing about the tokenizer, the policy on BOS and EOD, or where the text came
from, and carry no checksum.  The manifest does.  A model here checks itself when it is made; a file
that does not fit its own hash, or was written by a newer version, is refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Buffer, Mapping
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import orjson
import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_prep.errors import UserError

MANIFEST_FORMAT_VERSION: Final = 3
BLOCK_BYTES = 64 * 1024 * 1024
ITEM_BYTES = {"uint16": 2, "int32": 4}
# What is hashed at once: it stays in a processor's cache between being read and being hashed.
_READ_BYTES = 1024 * 1024

_MEND = "restore the file, or write the dataset again with `ipt data index`"


# What fits into the 64-bit numbers of the files, sums included.
Count = Annotated[int, Field(ge=0, le=1 << 60)]


class _Checked(BaseModel):
    """Base: unknown keys are refused, and nothing changes once made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenizerIdentity(_Checked):
    """The tokenizer a dataset was written with, and what was put around each document."""

    fingerprint: str = Field(description="sha256 of the tokenizer's content and its control ids")
    vocab_size: int = Field(ge=1, le=1 << 31, description="largest token id + 1")
    bos_id: int | None
    eos_id: int | None
    eod_id: int | None = Field(description="the end-of-document token, appended where append_eod says so")
    prepend_bos: bool
    append_eod: bool

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("bos_id", "eos_id", "eod_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.vocab_size:
                raise ValueError(f"{name} {token} is outside the vocabulary of {self.vocab_size}")
        if self.prepend_bos and self.bos_id is None:
            raise ValueError("prepend_bos without a bos_id")
        if self.append_eod and self.eod_id is None:
            raise ValueError("append_eod without an eod_id")
        return self


class FileHashes(_Checked):
    """Size of a file [bytes] and the xxh3_128 of each block of it; the last block may be short."""

    bytes: Count
    block_bytes: int = Field(BLOCK_BYTES, ge=1, le=1 << 30)
    blocks: tuple[str, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        expected = -(-self.bytes // self.block_bytes)
        if len(self.blocks) != expected:
            raise ValueError(f"{len(self.blocks)} block hashes where {self.bytes} bytes need {expected}")
        return self

    def check(self, path: Path, every_block: bool) -> None:
        """Holds a file against its size and hashes: every block, or the first and the last.

        Errors: a UserError naming the file, and the block that differs.
        """
        self.check_size(path)
        last = len(self.blocks) - 1
        for block in range(last + 1) if every_block or last < 0 else sorted({0, last}):
            self.check_block(path, block)

    def check_size(self, path: Path) -> None:
        """Holds a file against its size only; errors as above."""
        if not path.is_file():
            raise UserError(path, "no such file, though the manifest beside it counts on it", _MEND)
        size = path.stat().st_size
        if size != self.bytes:
            raise UserError(path, f"{size} bytes where its manifest says {self.bytes}: stale or foreign", _MEND)

    def check_block(self, path: Path, block: int) -> None:
        """Holds one block of a file against its hash; errors as above.  Threads may check blocks side by side."""
        hasher, start = xxhash.xxh3_128(), block * self.block_bytes
        left, buffer = self.block_bytes, memoryview(bytearray(min(self.block_bytes, _READ_BYTES)))
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while left and (count := file.readinto(buffer[:left])):
                hasher.update(buffer[:count])
                left -= count
        if hasher.hexdigest() != self.blocks[block]:
            problem = f"block {block}, from byte {start} on, is not what its manifest vouches for"
            raise UserError(path, problem, _MEND)


class InputFile(_Checked):
    """A file the dataset was made from: its name, its size [bytes] and its hash.

    The name is without folders, but for those that tell it from another input.  The hash is xxh3_128 of the file in
    format 1, of the xxh3_128 of its blocks of BLOCK_BYTES since format 2.
    """

    name: str
    bytes: Count
    hash: str


class Manifest(_Checked):
    """Everything known of one dataset.  `text_bytes` counts the UTF-8 of the documents kept, without BOS and EOD.

    Format 1 knew neither spans nor hashes of the side-car files.
    """

    format_version: Literal[1, 2, 3] = MANIFEST_FORMAT_VERSION
    tokenizer: TokenizerIdentity
    dtype: Literal["uint16", "int32"]
    documents: Count
    tokens: Count
    text_bytes: Count
    dropped: dict[str, Count] = Field(description="reason -> documents dropped for it")
    lost_characters: Count = Field(0, description="characters for which the tokenizer has no token")
    lossy_documents: Count = Field(0, description="documents with such characters")
    bin: FileHashes
    idx: FileHashes
    lineage: FileHashes | None = None
    spans: FileHashes | None = Field(None, description="none where every text is of one class")
    encoder: str = Field("", description="the library that encoded, with its version")
    settings: dict[str, Any]
    inputs: tuple[InputFile, ...]
    created_by: str

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.bin.bytes != self.tokens * ITEM_BYTES[self.dtype]:
            raise ValueError(f"{self.tokens} tokens of {self.dtype} are not {self.bin.bytes} bytes")
        if self.documents > self.tokens:
            raise ValueError(f"{self.documents} documents cannot share {self.tokens} tokens")
        return self

    @cached_property
    def data_hash(self) -> str:
        """Identity of the tokens and of their meaning; equal for two datasets that train alike."""
        fields = {"tokenizer", "dtype", "bin", "idx"} | ({"spans"} if self.spans else set())
        return content_hash(self.model_dump(include=fields, mode="json"))

    @cached_property
    def lineage_hash(self) -> str | None:
        """Identity of what the documents were made from, which `data_hash` leaves out; None where that is not known."""
        return content_hash(self.lineage.model_dump(mode="json")) if self.lineage else None

    def write(self, prefix: Path, durable: bool = True) -> None:
        """Writes PREFIX.manifest.json, the last file of a dataset to be put in place."""
        content = self.model_dump(mode="json")
        write_json(manifest_path(prefix), {**content, "hash": content_hash(content)}, durable)


def manifest_path(prefix: Path) -> Path:
    """PREFIX.manifest.json.  (`with_suffix` would eat a dot inside the prefix.)"""
    return prefix.with_name(prefix.name + ".manifest.json")


def read_manifest(prefix: Path) -> Manifest:
    """The manifest of the dataset at `prefix`.

    Errors: a UserError naming the file where it is missing, damaged, or of a newer format.
    """
    path = manifest_path(prefix)
    if not path.is_file():
        raise UserError(path, "no manifest, so nothing vouches for this dataset", "write it with `ipt data index`")
    content = read_hashed_json(path, MANIFEST_FORMAT_VERSION, _MEND)
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"{part}: " for part in first["loc"])
        raise UserError(path, f"not a manifest: {place}{first['msg']}", _MEND) from error


def read_hashed_json(path: Path, newest_version: int, mend: str) -> dict[str, Any]:
    """The JSON object in `path`, without its own `hash`, once that hash and `format_version` are found right."""
    try:
        content = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(path, f"damaged, not JSON ({error})", mend) from error
    if not isinstance(content, dict):
        raise UserError(path, "damaged, not a JSON object", mend)
    found = content.get("format_version")
    if isinstance(found, int) and found > newest_version:
        problem = f"format version {found} is newer than {newest_version}, the newest this version reads"
        raise UserError(path, problem, "update instruction-pretraining")
    try:
        fits = content.pop("hash", None) == content_hash(content)
    except orjson.JSONEncodeError:  # nested deeper than anything written here
        fits = False
    if not fits:
        raise UserError(path, "damaged or edited: its content does not fit its hash", mend)
    return content


def write_json(path: Path, content: Mapping[str, Any], durable: bool = True) -> None:
    """Writes readable JSON so that `path` is never seen half written."""
    partial = partial_path(path)
    partial.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    commit(partial, path, durable)


def partial_path(path: Path) -> Path:
    """Where a file is written until it is whole."""
    return path.with_name(path.name + ".partial")


def commit(partial: Path, path: Path, durable: bool = True) -> None:
    """Puts a whole file in place; if `durable`, its bytes reach the disk before its name does."""
    if durable:
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
    partial.replace(path)


def content_hash(content: Mapping[str, Any]) -> str:
    """xxh3_128 of a JSON object, whatever the order of its keys."""
    return xxhash.xxh3_128_hexdigest(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))


class BlockHasher:
    """Hashes a file block by block while it is written or read."""

    def __init__(self, block_bytes: int = BLOCK_BYTES) -> None:
        self._block_bytes = block_bytes
        self._hasher = xxhash.xxh3_128()
        self._bytes, self._blocks = 0, list[str]()

    def update(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        while len(view):
            room = self._block_bytes - self._bytes % self._block_bytes
            taken = view[:room]
            self._hasher.update(taken)
            self._bytes += len(taken)
            view = view[room:]
            if self._bytes % self._block_bytes == 0:
                self._close_block()

    def finish(self) -> FileHashes:
        if self._bytes % self._block_bytes:
            self._close_block()
        return FileHashes(bytes=self._bytes, block_bytes=self._block_bytes, blocks=tuple(self._blocks))

    def _close_block(self) -> None:
        self._blocks.append(self._hasher.hexdigest())
        self._hasher.reset()


def package_version() -> str:
    """Name and version of this package, for `created_by`."""
    try:
        return f"instruction-pretraining {version('instruction-pretraining')}"
    except PackageNotFoundError:
        return "instruction-pretraining (not installed)"
