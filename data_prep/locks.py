"""A file that one process at a time may hold: between runs on one machine, and on file systems that have locks."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def lock(file: IO[bytes] | IO[str], wait: bool = False) -> bool:
    """Locks an open file until it is closed; False if another process holds it.  `wait` waits for that one.

    True without a lock where the file system has none (Lustre without -o flock, say).
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def is_alive(process: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return True


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Waits until no other process is in here with the same `path`, a file for this alone that goes at the end."""
    while True:
        with path.open("w") as file:
            lock(file, wait=True)
            if not _is_there(path, file):
                continue  # who held it took it away
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_there(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
