"""Jobs with a worker that dies by a signal, as one without memory does, or whose engine is sick or cannot be made."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from data_prep.errors import UserError
from data_prep.synthesis.engines import Completion, Engine, Request
from data_prep.synthesis.engines.rules import RulesEngine
from data_prep.synthesis.executors import Job, Teller
from data_prep.synthesis.prompts import Prompter
from data_prep.synthesis.wire import byte_wire
from data_prep.synthesis.worker import Told, Worker


class DyingEngine(RulesEngine):
    """Dies at its tenth request, unless the file `mark` says that one has died already.

    `last` is done just before that.
    """

    def __init__(self, mark: Path, last: Callable[[], object]) -> None:
        super().__init__(count=lambda text: len(byte_wire().encode(text)))
        self.mark, self.left, self.last = mark, 9, last

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.left -= 1
        if self.left < 0:
            try:
                self.mark.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                self.last()
                os.kill(os.getpid(), signal.SIGKILL)
        return await super().generate(requests)


class DyingJob(Job):
    """Its workers have that engine; IPT_TEST_DIES_ONCE names the file."""

    def worker(self, told: Told, engine: Engine | None = None, prompter: Prompter | None = None) -> Worker:

        def half_a_word() -> None:
            """As one that is killed while it speaks: the length of what it would say, and not all of it."""
            if isinstance(told, Teller):  # and not an actor of Ray, which has no pipe
                os.write(told._send.__self__.fileno(), struct.pack("!i", 1000) + b"half")  # type: ignore[attr-defined]

        return super().worker(told, DyingEngine(Path(os.environ["IPT_TEST_DIES_ONCE"]), half_a_word), prompter)


class SickEngine(RulesEngine):
    """Fails as soon as it has to do with a shard."""

    @property
    def identity(self) -> dict[str, str]:
        raise OSError("CUDA error")


class SickJob(Job):
    """The first of its workers has that engine."""

    def worker(self, told: Told, engine: Engine | None = None, prompter: Prompter | None = None) -> Worker:
        try:
            self.root.with_name("sick").touch(exist_ok=False)
        except FileExistsError:
            return super().worker(told, engine, prompter)
        return super().worker(told, SickEngine(), prompter)


class UnmadeJob(Job):
    """No worker of it has an engine."""

    def worker(self, told: Told, engine: Engine | None = None, prompter: Prompter | None = None) -> Worker:
        raise UserError("model", "vLLM did not start:\nno such thing", "see its log above")
