"""Completions already made, by a hash of request and engine: what a killed run goes on from.

One JSON object a line, written as each completion comes, so that a kill loses none, and synced to disk once a second,
so that a machine that fails loses a second's.  A line that was cut short is removed when the journal is opened again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Final, Self

import numpy
import orjson
import xxhash

from data_prep.errors import UserError
from data_prep.locks import lock
from data_prep.readers import DISK_FULL
from data_prep.synthesis.engines import Completion, Request

SYNC_SECONDS: Final = 1.0


class AtWork(UserError):
    """Another process has the journal open."""


class Journal:
    """The completions of one engine; entries of other engines or settings are kept, and not found.

    Raises:
        UserError: a line is not of a journal; another process has it open (AtWork); the disk is full.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._identity = orjson.dumps(dict(identity), option=orjson.OPT_SORT_KEYS)
        self._known: dict[str, Completion] = {}
        self._stream = _opened(path)
        try:
            self._load()
        except BaseException:
            self._stream.close()
            raise
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def key(self, request: Request) -> str:
        """A hash of the prompt's ids, the seed and the engine's identity, in hex."""
        content = self._identity + numpy.asarray([request.seed >> 1, *request.prompt], dtype="<i8").tobytes()
        return xxhash.xxh3_128_hexdigest(content)

    def find(self, request: Request) -> Completion | None:
        """The completion of that request, if it was made before."""
        return self._known.get(self.key(request)) if self._known else None

    def add(self, entries: Iterable[tuple[Request, Completion]]) -> None:
        """Writes completions down; those that are found later are the ones of an earlier run."""
        rows = [orjson.dumps({"key": self.key(request), **made.to_json()}) + b"\n" for request, made in entries]
        try:
            left = memoryview(b"".join(rows))
            while left:  # a disk that gets full takes a part
                left = left[self._stream.write(left) :]
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._stream.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            if error.errno in DISK_FULL:
                raise UserError(self.path, "the disk is full", "free some space and run again") from error
            raise

    def _load(self) -> None:
        if not self.path.is_file():
            return
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                row = orjson.loads(line)
                key = row.pop("key")
                self._known[key] = Completion(**row)
            except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
                where = f"{self.path}:{number}"
                raise UserError(
                    where, f"not a line of a journal ({error!r})", "remove the line, it is made again"
                ) from error


def _opened(path: Path) -> FileIO:
    """The file, for this process alone until it is closed."""
    try:
        path.parent.mkdir(exist_ok=True)
        stream = path.open("ab", buffering=0)
    except FileNotFoundError as error:
        raise UserError(
            path.parent.parent, "another process has finished this run", "there is nothing to do"
        ) from error
    if not lock(stream):
        stream.close()
        mend = "wait until it is done; tasks of an array have a --shard-index each, and one --num-shards"
        raise AtWork(path, "another process is at work on this shard", mend)
    return stream
