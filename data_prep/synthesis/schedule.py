"""When each request goes out: chains over an engine, every text asked about once, whatever fails.

Two schedules.  An engine that takes each request by itself (`batch_size` 1) gets them chain by chain: the next prompt
of a chain goes out when its last answer has come, so it finds all but its own text in the engine's prefix cache, and
no chain waits for another.  An engine of batches gets those of one round of one shard together, longest first, so that
little is padded; its batches depend on the shard only, and one that is not in the journal whole is made again whole:
so a resumed run computes in the same batches, and writes the same bytes, as one that was never killed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from data_prep.errors import UserError
from data_prep.synthesis.conversation import Conversation, words
from data_prep.synthesis.engines import Completion, Engine, Request
from data_prep.synthesis.journal import Journal
from data_prep.synthesis.prompts import Prompter

logger = logging.getLogger(__name__)

MOST_FAILURES_IN_A_ROW: Final = 64
"""After so many the engine as a whole does not work: to go on would only leave every text without pairs."""


Told = Callable[[Conversation, Completion | None, bool], None]
"""Hears of a text that is done: its conversation, where it stands last; what the engine wrote, None where it failed;
and whether that is new, not of a journal."""


class Health:
    """Whether the engine answers at all.

    Raises:
        UserError: in the engine's words, when it has failed on many texts and answered none in between.
    """

    def __init__(self) -> None:
        self.failures_in_a_row = 0
        self.answered = 0
        self.last_words = ""

    def good(self, count: int = 1) -> None:
        self.answered += count
        self.failures_in_a_row = 0

    def bad(self, error: BaseException) -> None:
        self.failures_in_a_row += 1
        self.last_words = words(error)
        if self.failures_in_a_row >= MOST_FAILURES_IN_A_ROW:
            raise self.verdict()

    def verdict(self) -> UserError:
        """What is to be told where no text at all was answered."""
        problem = f"it failed on {self.failures_in_a_row} texts in a row ({self.last_words})"
        return UserError("synthesis engine", problem, "mend the engine and run again; finished texts are kept")


@dataclass(frozen=True)
class Schedule:
    """Runs conversations; `told` hears of each text that is done."""

    engine: Engine
    prompter: Prompter
    health: Health
    told: Told

    async def chain(self, conversation: Conversation, journal: Journal) -> None:
        """One chain over all its rounds, as fast as its answers come."""
        while not conversation.is_over:
            request = conversation.ask(self.prompter).request
            known = journal.find(request)
            try:
                completion = known or (await self.engine.generate([request]))[0]
            except Exception as error:  # an engine may raise anything; its words are kept
                self._failed(conversation, error)
                continue
            if known is None:
                journal.add([(request, completion)])
            self._answered(conversation, completion, new=known is None)

    async def rounds(self, conversations: Sequence[Conversation], journal: Journal) -> None:
        """All chains of a shard, round by round in batches."""
        while waiting := [each for each in conversations if not each.is_over]:
            requests = [each.ask(self.prompter).request for each in waiting]
            for batch in batches([request.prompt for request in requests], self.engine.batch_size):
                await self._batch([(waiting[place], requests[place]) for place in batch], journal)

    async def _batch(self, asked: Sequence[tuple[Conversation, Request]], journal: Journal) -> None:
        known = [journal.find(request) for _, request in asked]
        new = not all(known)
        answers = await self._generate([request for _, request in asked]) if new else known
        if new:
            made = zip((request for _, request in asked), answers, strict=True)
            journal.add((request, answer) for request, answer in made if isinstance(answer, Completion))
        for (conversation, _), answer in zip(asked, answers, strict=True):
            if isinstance(answer, Completion):
                self._answered(conversation, answer, new)
            else:
                assert answer is not None
                self._failed(conversation, answer)

    async def _generate(self, requests: Sequence[Request]) -> Sequence[Completion | Exception]:
        """The completions of a batch; where the engine fails on it, each request is tried once more by itself."""
        try:
            return await self.engine.generate(requests)
        except Exception as error:  # an engine may raise anything; its words are kept
            count = len(requests)
            logger.warning("the engine failed on a batch of %d, each is tried by itself: %s", count, words(error))
        answers: list[Completion | Exception] = []
        for request in requests:
            try:
                answers += await self.engine.generate([request])
            except Exception as again:
                answers.append(again)
        return answers

    def _answered(self, conversation: Conversation, completion: Completion, new: bool) -> None:
        self.health.good()
        conversation.take(completion, self.prompter)
        self.told(conversation, completion, new)

    def _failed(self, conversation: Conversation, error: Exception) -> None:
        logger.warning("document %s failed: %s", conversation.next_text.document_id, words(error))
        conversation.fail(words(error))
        self.told(conversation, None, False)
        self.health.bad(error)


def batches(prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Places of prompts, longest first so that a batch is padded little, `size` together."""
    order = sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), place))
    return [order[start : start + size] for start in range(0, len(order), size)]


async def run_chains(
    schedule: Schedule, conversations: Sequence[Conversation], journal: Journal, slots: asyncio.Semaphore
) -> None:
    """The chains of one shard, by the schedule that fits the engine; `slots` bounds those under way in this process."""
    if schedule.engine.batch_size > 1:
        await schedule.rounds(conversations, journal)
        return

    async def one(conversation: Conversation) -> None:
        async with slots:
            await schedule.chain(conversation, journal)

    async with asyncio.TaskGroup() as group:
        for conversation in conversations:
            group.create_task(one(conversation))
