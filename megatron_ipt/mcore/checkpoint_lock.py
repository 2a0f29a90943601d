"""One run at a time saves into a folder: two would remove each other's half-written checkpoints, and mix their metrics.

    SAVE/.lock    locked (flock) by rank 0 for as long as the run lasts; holds `host process`

The kernel gives the lock back when the process ends, however it ends.  A file system that cannot lock is used without.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
from pathlib import Path
from typing import IO, Final

from data_prep.errors import UserError

logger = logging.getLogger(__name__)

LOCK: Final = ".lock"
LEASE_SECONDS: Final = 100.0
"""A network file system gives a dead machine's locks back after its lease, 90 s by default: wait for that long [s]."""
_TAKEN: Final = (errno.EAGAIN, errno.EACCES)


def locked(folder: Path) -> IO[str]:
    """The open lock file of `folder`, which is made: closing it gives it back.

    UserError where another run has it, or nothing can be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            folder, f"checkpoints cannot be written there ({error.strerror})", "give another one"
        ) from error
    began = time.monotonic()
    while not _taken(file):
        file.seek(0)
        host, _, process = file.read().strip().partition(" ")
        if time.monotonic() - began >= (0.0 if host == socket.gethostname() else LEASE_SECONDS):
            file.close()
            problem = f"another run saves there (process {process} on {host})"
            raise UserError(folder, problem, "wait for its end, or give another output_dir or train.save")
        time.sleep(1.0)
    if not (folder / LOCK).exists() or not os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat()):
        file.close()  # a run that saved nothing has just removed it
        return locked(folder)
    return file


def give_back(file: IO[str], folder: Path) -> None:
    """Free `folder`; one without anything in it is removed, so that a run that could not start leaves none."""
    with file:
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


def _taken(file: IO[str]) -> bool:
    """Whether the lock is ours now; a file system that has none gives it to everyone."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        logger.debug("%s cannot be locked: %s", file.name, error)
    file.truncate(0)
    file.write(f"{socket.gethostname()} {os.getpid()}")
    file.flush()
    return True
