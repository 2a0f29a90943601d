"""Workers as actors of a Ray cluster, each with an engine of its own, on one machine or many.

The cluster shares the folder of the run.  An actor is given shards when its engine is made; one that the cluster has
no room for has none, and takes some if it comes up, so the cluster may grow and shrink.  An actor that dies, or whose
engine fails as a whole, is killed: its shards go to others, and another is started in its place.  A shard that has
failed SHARD_ATTEMPTS times ends the run, and so does an engine that works nowhere.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from data_prep.errors import UserError
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.conversation import words
from data_prep.synthesis.executors import Job
from data_prep.synthesis.journal import AtWork
from data_prep.synthesis.worker import Told, Worker, unwrapped

logger = logging.getLogger(__name__)

SHARD_ATTEMPTS: Final = 3
SHARDS_OF_AN_ACTOR: Final = 2
"""Shards that an actor has at once: the chains of the second fill up what those of the first leave idle."""
DEATH_SECONDS: Final = 60.0
"""How long a killed actor may take to let go of a shard's journal."""
POLL_SECONDS: Final = 0.2
PATIENCE_SECONDS: Final = 60.0
"""After so long without any actor, and again each time, the user is told what is waited for."""


class ShardActor:
    """A worker whose shards come from outside, several at once."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._told: Counter[str] = Counter()
        self._one_at_a_time = asyncio.Lock()

    async def ready(self) -> str:
        """Makes the engine, to be called first; where it runs: the machine and its GPUs.

        An error of here comes over as itself; Ray would make a traceback of one of `__init__`.

        Raises:
            UserError: the engine cannot be made.
        """
        self._worker: Worker = self._job.worker(self._told.update)
        self._slots = asyncio.Semaphore(self._worker.engine.concurrency)
        return f"{socket.gethostname()} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}"

    async def work_off(self, shard: int) -> Counter[str]:
        """All of a shard; what has been done since the last answer.

        Raises:
            UserError: the engine does not work at all; the shard stays in its journal.
        """
        with unwrapped():
            if self._worker.engine.batch_size > 1:  # batches of one shard at a time
                async with self._one_at_a_time:
                    await self._shard(shard)
            else:
                await self._shard(shard)
        told = Counter(self._told)
        self._told.clear()
        return told

    async def _shard(self, shard: int) -> None:
        """Waits for the journal while an actor that was killed has not let go of it."""
        last = time.monotonic() + DEATH_SECONDS
        while True:
            try:
                return await self._worker.shard(shard, self._slots)
            except AtWork:
                if time.monotonic() > last:
                    raise
            await asyncio.sleep(POLL_SECONDS)


@dataclass
class Cluster:
    """The actors, by numbers below `workers`, and what each of them has to do.

    `answers` holds what is waited for: which actor's, and of which shard, None for its engine.  `places` are those of
    the actors that are up.  `failures` counts them in a row by actor (its number, whoever takes its place) and by
    place, `failed` by shard in all.  An actor that has failed SHARD_ATTEMPTS times in a row is not started again.
    """

    ray: Any
    make: Callable[[], Any]
    waiting: list[int]
    workers: int
    told: Told
    actors: dict[int, Any] = field(default_factory=dict)
    answers: dict[Any, tuple[int, int | None]] = field(default_factory=dict)
    places: dict[int, str] = field(default_factory=dict)
    failures: Counter[int | str] = field(default_factory=Counter)
    failed: Counter[int] = field(default_factory=Counter)
    was_up: bool = False
    has_finished: bool = False

    def run(self) -> None:
        """Until every shard is done.

        Raises:
            UserError: a shard fails on several actors, or no actor is left to try.
        """
        self._deal()
        while self.waiting or any(shard is not None for _, shard in self.answers.values()):
            self._hear()
            self._deal()

    def close(self) -> None:
        """Kills all actors, those too that never came up."""
        for actor in self.actors.values():
            self.ray.kill(actor)

    def _hear(self) -> None:
        """One answer: an actor is up, or has done a shard, or has failed."""
        heard, _ = self.ray.wait(list(self.answers), num_returns=1, timeout=PATIENCE_SECONDS)
        if not heard:
            if not self.places:
                logger.warning("no worker is up yet: Ray has room for none, or their engines are being made")
            return
        number, shard = self.answers.pop(heard[0])
        try:
            answer = self.ray.get(heard[0])
        except self.ray.exceptions.RayError as error:
            self._lost(number, shard, getattr(error, "cause", None) or error)
            return
        if shard is None:
            self.places[number] = answer
            self.was_up = True
        else:
            self.has_finished = True
            del self.failures[number], self.failures[self.places[number]]
            self.told(answer)

    def _deal(self) -> None:
        """Shards to the actors that are up; new actors while shards are left; none stays that has nothing to do.

        A second shard at once is given only where those to come will not need it.  A shard that has failed before goes
        where least has failed: a sick GPU would get it again and again.
        """
        held = Counter(number for number, shard in self.answers.values() if shard is not None)
        least = min(map(self._badness, self.places), default=0)
        for number in sorted(self.places, key=held.__getitem__):
            while held[number] < (SHARDS_OF_AN_ACTOR if len(self.waiting) > self._coming() else 1):
                is_best = self._badness(number) == least
                shard = next((each for each in self.waiting if is_best or not self.failed[each]), None)
                if shard is None:
                    break
                self.waiting.remove(shard)
                self.answers[self.actors[number].work_off.remote(shard)] = (number, shard)
                held[number] += 1
        if not self.waiting:
            for number in [each for each in self.places if not held[each]]:
                self._kill(number)
        self._ask(len(self.waiting) - self._coming())

    def _ask(self, count: int) -> None:
        """For so many actors more, at most."""
        absent = [n for n in range(self.workers) if n not in self.actors and self.failures[n] < SHARD_ATTEMPTS]
        for number in absent[: max(0, count)]:
            self.actors[number] = self.make()
            self.answers[self.actors[number].ready.remote()] = (number, None)

    def _badness(self, number: int) -> int:
        return self.failures[number] + self.failures[self.places[number]]

    def _coming(self) -> int:
        return len(self.actors) - len(self.places)

    def _kill(self, number: int) -> str:
        """Where it was; empty for one that was never up."""
        self.ray.kill(self.actors.pop(number))
        return self.places.pop(number, "")

    def _lost(self, number: int, shard: int | None, error: Exception) -> None:
        """An actor has died or its engine has failed: all its shards go back.

        Raises:
            UserError: a shard has now failed too often, or there is no hope that another actor will do better.
        """
        others = [answer for answer, (owner, _) in self.answers.items() if owner == number]
        shards = [each for each in (shard, *(self.answers.pop(answer)[1] for answer in others)) if each is not None]
        self.waiting[:0] = shards
        place = self._kill(number)
        self.failures.update({number: 1, place: 1} if place else {number: 1})
        self.failed.update(shards)
        said = (f"{error.where}: {error.problem}" if isinstance(error, UserError) else words(error))[:300]
        logger.warning("worker %d (%s) died or failed (%s); its shards %s go to others", number, place, said, shards)
        problem = self._no_hope(error)
        if problem:
            if isinstance(error, UserError) and not self.has_finished:
                raise error
            raise UserError("Ray", f"{problem} ({said})", "mend the engine and run again; what is done is kept")

    def _no_hope(self, error: Exception) -> str:
        """Why the run ends here; empty where it goes on."""
        worst = max(self.failed, key=self.failed.__getitem__, default=None)
        if worst is not None and self.failed[worst] >= SHARD_ATTEMPTS:
            return f"shard {worst} failed on {SHARD_ATTEMPTS} workers"
        tries = sum(self.failures[each] for each in range(self.workers))
        if not self.was_up and (isinstance(error, UserError) or tries >= SHARD_ATTEMPTS):
            return f"no worker could be started, {tries} failed"
        if all(self.failures[each] >= SHARD_ATTEMPTS for each in range(self.workers)):
            return f"every worker failed {SHARD_ATTEMPTS} times in a row"
        return ""


def run_on_ray(job: Job, shards: Sequence[int], told: Told) -> None:
    """Works the shards off on the cluster that RAY_ADDRESS names, or on this machine.

    Raises:
        UserError: ray is not installed; the engine cannot be made; a shard fails on several workers.
    """
    try:
        import ray
    except ImportError as error:
        mend = "pip install 'instruction-pretraining[ray]', or leave --executor local"
        raise UserError("--executor ray", "ray is not installed", mend) from error
    begun_here = not ray.is_initialized()
    if begun_here:
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, logging_level="ERROR")
    gpus = _gpus(job.settings, ray.cluster_resources().get("GPU", 0))
    actor = ray.remote(num_cpus=1, num_gpus=gpus)(ShardActor)
    workers = min(job.settings.workers, len(shards))
    cluster = Cluster(ray, lambda: actor.remote(job), list(shards), workers, told)
    try:
        cluster.run()
    finally:
        cluster.close()
        if begun_here:
            ray.shutdown()


def _gpus(settings: SynthesizeSettings, held: float) -> float:
    """GPUs of a worker, on a cluster that has `held` of them."""
    needed = {"vllm": settings.tensor_parallel_size, "transformers": min(1, held)}
    return settings.gpus_per_worker or needed.get(settings.engine, 0)
