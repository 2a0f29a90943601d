"""A child process that does not outlive us: ended, and waited for, when we are."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import IO

from data_prep.errors import UserError

GRACE_SECONDS = 60.0


@contextmanager
def child(
    command: Sequence[str], environment: Mapping[str, str], stderr: IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start `command`; leaving the block, also by SIGTERM or Ctrl-C, ends it if it still runs.

    The child gets SIGTERM first, so that it can end its own children, and SIGKILL after GRACE_SECONDS.
    """

    def interrupt(_: int, __: FrameType | None) -> None:
        raise UserError("SIGTERM", "ended from outside", "what was finished stays: start again to go on")

    before = signal.signal(signal.SIGTERM, interrupt)
    process = subprocess.Popen(command, env=dict(environment), stderr=stderr)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        signal.signal(signal.SIGTERM, before)
