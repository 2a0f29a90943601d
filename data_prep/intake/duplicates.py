"""Ids that recur in a corpus of any size: hashes go to files on disk, and come back a bucket at a time.

Documents are told one by one, in order.  A record of 32 bytes goes to the bucket that the hash of its id names; a
bucket that is too large to sort in memory is split by the next byte of the hash.  Memory is bounded, whatever the
corpus, and the first document with an id is the one that stays.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import xxhash

from data_prep.errors import UserError
from data_prep.readers import DISK_FULL

BUCKETS: Final = 256
"""One for each value of a byte of the hash."""
HELD_RECORDS: Final = 1 << 18
"""Records that are held in memory at once: told and not yet on disk, or read back to be sorted."""

_HASH_BYTES, _TEXT_BYTES = 16, 8
# Big-endian, so that the bytes of the hash in their order are its bytes by weight.
_TOLD = np.dtype([("high", ">u8"), ("low", ">u8"), ("text", ">u8")])
_RECORD = np.dtype([*((name, ">u8") for name in ("high", "low", "text")), ("ordinal", "<u8")])


@dataclass(frozen=True, slots=True)
class Repeat:
    """Document `ordinal`, counted from 0 in the order told, has the id of document `first`, which came before it."""

    ordinal: int
    first: int
    same_text: bool

    @property
    def detail(self) -> str:
        return "another document has this id and " + ("the same text" if self.same_text else "another text")


class Duplicates:
    """Finds the documents whose id came before; `with` empties its folder at the end.

    Ids are compared by 128 bits of a hash, texts by 64: of a billion ids two unlike ones are taken for equal with a
    probability of 2e-21.
    """

    def __init__(self, folder: Path, held_records: int = HELD_RECORDS) -> None:
        """`folder` is made anew: what an earlier run left there goes."""
        self._folder, self._held = folder, held_records
        self._told = bytearray()
        self.documents = 0
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, identifier: str, text: str) -> None:
        """Tells the next document.  Errors: a UserError if the disk is full."""
        self._told += xxhash.xxh3_128_digest(identifier.encode()) + xxhash.xxh3_64_digest(text.encode())
        self.documents += 1
        if len(self._told) >= self._held * _TOLD.itemsize:
            self._spill()

    def repeats(self) -> Iterator[Repeat]:
        """All documents but the first of each id, bucket by bucket, so in no order; the buckets are used up.

        Errors: a UserError if the disk is full.
        """
        self._spill()
        for bucket in sorted(self._folder.iterdir()):
            yield from self._in_bucket(bucket, depth=1)

    def _spill(self) -> None:
        told = np.frombuffer(self._told, _TOLD)
        records = np.empty(len(told), _RECORD)
        for name in ("high", "low", "text"):
            records[name] = told[name]
        records["ordinal"] = np.arange(self.documents - len(told), self.documents)
        self._told = bytearray()
        _scatter(records, self._folder, "", 0)

    def _in_bucket(self, bucket: Path, depth: int) -> Iterator[Repeat]:
        """Of the documents of a bucket, which have `depth` bytes of the hash in common."""
        if bucket.stat().st_size <= self._held * _RECORD.itemsize:
            records = np.fromfile(bucket, _RECORD)
            bucket.unlink()
            yield from _repeats(records)
        elif depth == _HASH_BYTES:
            first = np.fromfile(bucket, _RECORD, count=1)
            for records in self._pieces(bucket):
                found = _repeats(np.concatenate([first, records]))
                yield from (repeat for repeat in found if repeat.ordinal != repeat.first)
            bucket.unlink()
        else:
            for records in self._pieces(bucket):
                _scatter(records, self._folder, f"{bucket.name}-", depth)
            bucket.unlink()
            for part in sorted(self._folder.glob(f"{bucket.name}-*")):
                yield from self._in_bucket(part, depth + 1)

    def _pieces(self, bucket: Path) -> Iterator[np.ndarray]:
        with bucket.open("rb") as stream:
            while data := stream.read(self._held * _RECORD.itemsize):
                yield np.frombuffer(data, _RECORD)


def _scatter(records: np.ndarray, folder: Path, prefix: str, place: int) -> None:
    """Appends each record to the bucket that byte `place` of its hash names, in order."""
    if not len(records):
        return
    keys = records.view(np.uint8).reshape(len(records), _RECORD.itemsize)[:, place]
    order = np.argsort(keys, kind="stable")
    bounds = np.searchsorted(keys[order], np.arange(BUCKETS + 1))
    try:
        for key in np.unique(keys).tolist():
            with (folder / f"{prefix}{key:02x}").open("ab") as stream:
                stream.write(records[order[bounds[key] : bounds[key + 1]]].tobytes())
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(folder, "the disk is full", "free some space and run again") from error
        raise


def _repeats(records: np.ndarray) -> Iterator[Repeat]:
    """Of records in the order told, all but the first with each hash."""
    records = records[np.lexsort((records["low"], records["high"]))]  # stable: equal ones keep their order
    new = np.ones(len(records), bool)
    new[1:] = (records["high"][1:] != records["high"][:-1]) | (records["low"][1:] != records["low"][:-1])
    firsts = records[np.maximum.accumulate(np.where(new, np.arange(len(records)), 0))][~new]
    others = records[~new]
    same = others["text"] == firsts["text"]
    columns = others["ordinal"].tolist(), firsts["ordinal"].tolist(), same.tolist()
    return map(Repeat, *columns)
