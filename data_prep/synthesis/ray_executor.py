"""Workers as actors of a Ray cluster, each with an engine of its own, on one machine or many.

The cluster shares the folder of the run.  Actors start as resources come free and take shards as they get ready, so
the cluster may grow and shrink; a shard whose actor died is given to another, and an actor is started in its place.
A shard that has killed its actor SHARD_ATTEMPTS times, or an engine that does not work at all, ends the run.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from data_prep.errors import UserError
from data_prep.synthesis.conversation import words
from data_prep.synthesis.executors import Job
from data_prep.synthesis.worker import Told, Worker, unwrapped

logger = logging.getLogger(__name__)

SHARD_ATTEMPTS: Final = 3
SHARDS_OF_AN_ACTOR: Final = 2
"""Shards that an actor has at once: the chains of the second fill up what those of the first leave idle."""


class ShardActor:
    """A worker whose shards come from outside, several at once."""

    def __init__(self, job: Job) -> None:
        self._told: Counter[str] = Counter()
        self._worker: Worker = job.worker(self._told.update)
        self._slots = asyncio.Semaphore(self._worker.engine.concurrency)
        self._one_at_a_time = asyncio.Lock()

    async def work_off(self, shard: int) -> Counter[str]:
        """All of a shard; what has been done since the last answer.

        Raises:
            UserError: the engine does not work at all; the shard stays in its journal.
        """
        with unwrapped():
            if self._worker.engine.batch_size > 1:  # batches of one shard at a time
                async with self._one_at_a_time:
                    await self._worker.shard(shard, self._slots)
            else:
                await self._worker.shard(shard, self._slots)
        told = Counter(self._told)
        self._told.clear()
        return told


@dataclass
class Cluster:
    """The actors, and which shard each has; `attempts` counts how often a shard was given to one."""

    ray: Any
    make: Any
    waiting: list[int]
    attempts: Counter[int] = field(default_factory=Counter)
    under_way: dict[Any, tuple[int, int]] = field(default_factory=dict)
    actors: dict[int, Any] = field(default_factory=dict)

    def start(self, number: int) -> None:
        """An actor, in place of one that died, with shards to begin with."""
        self.actors[number] = self.make()
        for _ in range(SHARDS_OF_AN_ACTOR):
            self.give(number)

    def give(self, number: int) -> None:
        """The next shard to that actor."""
        if self.waiting:
            shard = self.waiting.pop(0)
            self.attempts[shard] += 1
            self.under_way[self.actors[number].work_off.remote(shard)] = (number, shard)

    def lost(self, number: int, error: Exception) -> None:
        """An actor has died: its shards go back, and another takes its place.

        Raises:
            UserError: a shard has now done that too often.
        """
        dead = {task: shard for task, (owner, shard) in self.under_way.items() if owner == number}
        for task, shard in dead.items():
            del self.under_way[task]
            if self.attempts[shard] >= SHARD_ATTEMPTS:
                problem = f"shard {shard} failed on {SHARD_ATTEMPTS} workers ({words(error)[:300]})"
                raise UserError("Ray", problem, "mend the engine and run again; what is done is kept")
        logger.warning("a worker died (%s); its shards %s go to others", words(error)[:300], [*dead.values()])
        self.waiting[:0] = dead.values()
        self.start(number)


def run_on_ray(job: Job, shards: Sequence[int], told: Told) -> None:
    """Works the shards off on the cluster that RAY_ADDRESS names, or on this machine.

    Raises:
        UserError: ray is not installed; the engine does not work; a shard fails on several workers.
    """
    try:
        import ray
    except ImportError as error:
        mend = "pip install 'instruction-pretraining[ray]', or leave --executor local"
        raise UserError("--executor ray", "ray is not installed", mend) from error
    begun_here = not ray.is_initialized()
    if begun_here:
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, logging_level="ERROR")
    gpus = job.settings.gpus_per_worker or (job.settings.tensor_parallel_size if job.settings.engine == "vllm" else 0)
    actor = ray.remote(num_cpus=1, num_gpus=gpus)(ShardActor)
    cluster = Cluster(ray, lambda: actor.remote(job), list(shards))
    try:
        for number in range(min(job.settings.workers, len(shards))):
            cluster.start(number)
        while cluster.under_way:
            _one_answer(cluster, told)
    finally:
        for each in cluster.actors.values():
            ray.kill(each)
        if begun_here:
            ray.shutdown()


def _one_answer(cluster: Cluster, told: Told) -> None:
    """Waits until a shard is done, or its worker dead, and goes on from there."""
    from ray.exceptions import RayActorError, RayTaskError

    (ready,), _ = cluster.ray.wait(list(cluster.under_way), num_returns=1)
    number, _ = cluster.under_way[ready]
    try:
        told(cluster.ray.get(ready))
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        cluster.lost(number, error)
    else:
        del cluster.under_way[ready]
        cluster.give(number)
