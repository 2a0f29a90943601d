"""Where workers run: in this process, in several of this machine, or on a Ray cluster (ray_executor.py).

Whoever works a shard off, its result is the same; so a worker that dies costs what it had under way, and its shards
are worked off by others.  An engine that does not work ends a run of this machine, since the others have the same
model, disk and driver; on Ray it costs that worker.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from data_prep.errors import UserError
from data_prep.settings import SynthesizeSettings
from data_prep.shards import end_with_parent
from data_prep.synthesis.demonstrations import load_demonstrations
from data_prep.synthesis.devices import environment_with, environments_of
from data_prep.synthesis.engines import Engine, make_engine
from data_prep.synthesis.prompts import Prompter
from data_prep.synthesis.wire import byte_wire, check_tags, load_wire
from data_prep.synthesis.work import Work, opened
from data_prep.synthesis.worker import Told, Worker

logger = logging.getLogger(__name__)

TELL_SECONDS: Final = 0.2
ASKS: Final = None
"""What a worker says when it wants a shard."""


@dataclass(frozen=True)
class Job:
    """What a worker has to know, light enough to be sent to it."""

    root: Path
    settings: SynthesizeSettings
    model: Path | None

    def worker(self, told: Told, engine: Engine | None = None, prompter: Prompter | None = None) -> Worker:
        """A worker with its engine; the caller closes that."""
        prompter = prompter or make_prompter(self.settings, self.model)
        work = self.work()
        made = engine or make_engine(self.settings, self.model, prompter.wire)
        return Worker(work, self.settings, made, prompter, told)

    def work(self) -> Work:
        """The folder, which whoever made the job has filled.

        Raises:
            UserError: it has been taken away since, by another process that found all shards done.
        """
        found = opened(self.root)
        if found is None:
            raise UserError(self.root, "another process has finished this run", "there is nothing to do")
        return found


def make_prompter(settings: SynthesizeSettings, model: Path | None) -> Prompter:
    """Prompts over the model's tokenizer; over bytes where there is no model.

    Raises:
        UserError: there is no tokenizer, it loses the tags, or a prompt has no room for a text.
    """
    wire = byte_wire() if model is None else load_wire(model)
    check_tags(wire, model)
    return Prompter(wire, settings, load_demonstrations(settings.demonstrations))


def run_shards(
    job: Job, shards: Sequence[int], told: Told, engine: Engine | None = None, prompter: Prompter | None = None
) -> None:
    """Works the shards off where the settings say; an engine that is given is used in this process.

    Raises:
        UserError: the engine does not work, every worker died, or there are more of them than the GPUs have room for.
    """
    if not shards:
        return
    workers = min(job.settings.workers, len(shards))
    if job.settings.executor == "ray" and engine is None:
        from data_prep.synthesis.ray_executor import run_on_ray

        run_on_ray(job, shards, told)
    elif workers > 1 and engine is None:
        _run_in_processes(job, shards, told, workers)
    else:
        waiting = iter(shards)
        asyncio.run(_work(job.worker(told, engine, prompter), lambda: next(waiting, None), close=engine is None))


async def _work(worker: Worker, take: Callable[[], int | None], close: bool = True) -> None:
    try:
        await worker.run(take)
    finally:
        if close:
            await worker.engine.close()


def _run_in_processes(job: Job, shards: Sequence[int], told: Told, workers: int) -> None:
    work = job.work()
    left = list(shards)
    while left:
        died = _one_round(job, left, told, workers)
        still = [shard for shard in left if not work.result(shard).exists()]
        if still and len(still) == len(left):
            mend = "look at what it printed; run again, and it goes on where it stopped"
            raise UserError("workers", f"all of them died ({', '.join(died)}) without finishing a shard", mend)
        if still:
            logger.warning("workers died (%s); %d shards are worked off by others", ", ".join(died), len(still))
        left = still


def _one_round(job: Job, shards: Sequence[int], told: Told, workers: int) -> list[str]:
    """Processes that are given the shards one by one, until all have ended; how those ended that died.

    Each sees its own of the GPUs.
    Each has a pipe of its own: of a queue that they share, one that is killed could keep the lock for ever.
    """
    context = multiprocessing.get_context("spawn")
    waiting = iter(shards)
    links: dict[Connection, BaseProcess] = {}
    for environment in environments_of(job.settings, workers):
        ours, theirs = context.Pipe()
        links[ours] = context.Process(target=_process, args=(job, theirs), daemon=True)
        with environment_with(environment):  # a spawned process has it before it imports anything
            links[ours].start()
        theirs.close()
    left = set(links)
    try:
        while any(process.is_alive() for process in links.values()):
            _hear(left, told, waiting, wait=TELL_SECONDS)
        _hear(left, told, waiting, wait=0.0)
    finally:
        for link, process in links.items():
            process.terminate()
            process.join()
            link.close()
    return [f"exit code {process.exitcode}" for process in links.values() if process.exitcode]


def _hear(left: set[Connection], told: Told, waiting: Iterator[int], wait: float) -> None:
    """What workers say, and the next shard to each that asks; the first error that one met is raised.

    A worker that has ended, though within a word, goes out of `left`.
    """
    while ready := connection.wait(left, timeout=wait):
        for link in ready:
            assert isinstance(link, Connection)
            try:
                item = link.recv()
                if item is ASKS:
                    link.send(next(waiting, None))
            except (EOFError, OSError):
                left.remove(link)
                continue
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, Counter):
                told(item)


def _process(job: Job, link: Connection) -> None:
    """A worker process: asks for a shard when it has room for one."""
    end_with_parent()

    def take() -> int | None:
        link.send(ASKS)
        shard: int | None = link.recv()
        return shard

    tell = Teller(link.send)
    try:
        asyncio.run(_work(job.worker(tell), take))
    except UserError as error:
        link.send(error)
    tell.flush()
    link.close()


class Teller:
    """Sums up what is told, and sends it on a few times a second."""

    def __init__(self, send: Callable[[Counter[str]], object]) -> None:
        self._send = send
        self._counts: Counter[str] = Counter()
        self._sent = time.monotonic()

    def __call__(self, counts: Counter[str]) -> None:
        self._counts.update(counts)
        if time.monotonic() - self._sent > TELL_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._counts:
            self._send(self._counts)
        self._counts, self._sent = Counter(), time.monotonic()
