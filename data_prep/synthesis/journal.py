"""Completions already made, by a hash of prompt and engine settings: what a killed run resumes from.

One JSON object a line, appended and synced batch by batch.  A line that the kill cut short is
removed when the journal is opened again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy
import orjson
import xxhash

from data_prep.errors import UserError
from data_prep.synthesis.engines import Completion, Engine


class Journal:
    """The completions of one engine; entries of other engines or settings are kept, and not found.

    Raises:
        UserError: a line is not of a journal; the disk is full.
    """

    def __init__(self, path: Path, engine: Engine) -> None:
        self.path = path
        self._identity = orjson.dumps(dict(engine.identity), option=orjson.OPT_SORT_KEYS)
        self._known: dict[str, Completion] = {}
        self._load()

    def key(self, prompt: Sequence[int]) -> str:
        """A hash of the prompt's ids and the engine's identity, in hex."""
        return xxhash.xxh3_128_hexdigest(self._identity + numpy.asarray(prompt, dtype="<i8").tobytes())

    def find(self, prompt: Sequence[int]) -> Completion | None:
        """The completion of that prompt, if it was made before."""
        return self._known.get(self.key(prompt))

    def add(self, entries: Iterable[tuple[Sequence[int], Completion]]) -> None:
        """Appends the completions of a batch and waits until they are on disk; known ones are left out."""
        fresh = {self.key(prompt): completion for prompt, completion in entries}
        fresh = {key: completion for key, completion in fresh.items() if key not in self._known}
        rows = [orjson.dumps({"key": key, **asdict(completion)}) + b"\n" for key, completion in fresh.items()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as stream:
                stream.write(b"".join(rows))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(self.path, "the disk is full", "free some space and run again") from error
            raise
        self._known |= fresh

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
