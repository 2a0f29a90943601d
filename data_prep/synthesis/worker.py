"""One worker: an engine in this process, and shards one after another, the next begun before the last is done.

An engine with many chains under way would stand idle at the end of each shard, while its last chains finish; so the
worker opens another as soon as it has fewer chains left than the engine takes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from data_prep.errors import UserError
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.conversation import Conversation
from data_prep.synthesis.engines import Completion, Engine
from data_prep.synthesis.journal import Journal
from data_prep.synthesis.prompts import Prompter
from data_prep.synthesis.schedule import Health, Schedule, run_chains
from data_prep.synthesis.shard import Shard, open_shard, write_result
from data_prep.synthesis.work import Work

Told = Callable[[Counter[str]], None]
"""Hears what has been done since it heard last: texts, pairs, new_completion_tokens, failed, documents."""


@dataclass
class Worker:
    """Works shards off; `told` hears of the progress."""

    work: Work
    settings: SynthesizeSettings
    engine: Engine
    prompter: Prompter
    told: Told = lambda counts: None
    health: Health = field(default_factory=Health)
    left: int = 0
    _more: bool = False
    _in_hand: int = 0
    _doubtful: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, take: Callable[[], int | None]) -> None:
        """Works off the shards that `take` gives until it gives None.

        Raises:
            UserError: the engine does not work at all; shards under way stay in their journals.
        """
        slots = asyncio.Semaphore(self.engine.concurrency)
        self._more = True
        with unwrapped():
            async with asyncio.TaskGroup() as group:  # a shard that fails ends the others, and this
                while (number := take()) is not None:
                    opened = asyncio.Event()
                    group.create_task(self.shard(number, slots, opened))
                    await opened.wait()
                    await self._room()
                self._more = False
                self._news.set()

    async def _room(self) -> None:
        """Until another shard is wanted: before the last is done, where the engine takes more chains than are left."""
        while self.left and (self.engine.batch_size > 1 or self.left >= self.engine.concurrency):
            self._news.clear()
            await self._news.wait()

    async def shard(self, number: int, slots: asyncio.Semaphore, opened: asyncio.Event | None = None) -> None:
        """All chains of one shard, and its result in place; nothing if it is there already."""
        path = self.work.journal(number)
        self._in_hand += 1
        try:
            with Journal(path, self.engine.identity) as journal:
                if not self.work.result(number).exists():
                    await self._work_off(number, journal, slots, opened)
                path.unlink()
        finally:
            self._in_hand -= 1
            self._news.set()
            if opened is not None:
                opened.set()

    async def _work_off(
        self, number: int, journal: Journal, slots: asyncio.Semaphore, opened: asyncio.Event | None
    ) -> None:
        shard = await open_shard(self.work, number, self.settings, self.prompter)
        self.left += len(shard.conversations)
        if opened is not None:
            opened.set()
        schedule = Schedule(self.engine, self.prompter, self.health, partial(self._text_done, shard))
        await run_chains(schedule, shard.conversations, journal, slots)
        if self.health.failures_in_a_row and not self.health.answered:
            await self._in_doubt()
        write_result(self.work, shard, self.engine.identity)

    async def _in_doubt(self) -> None:
        """Until it is known whether the engine works: it has failed on all of a shard and not answered yet.

        Raises:
            UserError: no shard is left to tell.
        """
        self._doubtful += 1
        while not self.health.answered and not self.work.has_results:
            if not self._more and self._doubtful == self._in_hand:
                raise self.health.verdict()
            self._news.clear()
            await self._news.wait()
        self._doubtful -= 1

    def _text_done(self, shard: Shard, conversation: Conversation, made: Completion | None, new: bool) -> None:
        if conversation.is_over:
            self.left -= 1
            self._news.set()
        text = conversation.texts[-1]
        counts = Counter(texts=1, failed=int(made is None), pairs=len(text.pairs))
        counts["documents"] = int(shard.is_last_of_document(text))
        counts["new_completion_tokens"] = made.completion_tokens if made is not None and new else 0
        self.told(counts)


@contextmanager
def unwrapped() -> Iterator[None]:
    """The first error of a group of tasks as itself; what the user is to read goes before what followed from it."""
    try:
        yield
    except BaseExceptionGroup as group:
        errors = list(_leaves(group))
        raise next((error for error in errors if isinstance(error, UserError)), errors[0]) from None


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
