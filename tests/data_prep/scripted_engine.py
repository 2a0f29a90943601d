"""An engine that answers from a script, at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import ClassVar

from data_prep.synthesis.engines import Completion, Request


class ScriptedEngine:
    """Asks for the second word of a text; of one that says "barren" it makes no pair.  `before` may raise, `reply` says
    something else.  An answer takes `turns` rounds of the event loop.

    `requests` are those that were answered, in their order; `most` is the most calls that were under way at once.
    """

    identity: ClassVar = {"engine": "scripted"}

    def __init__(
        self,
        batch_size: int = 1,
        concurrency: int = 4,
        before: Callable[[Sequence[Request]], None] = lambda requests: None,
        turns: int = 1,
        reply: Callable[[Request], Completion] | None = None,
    ) -> None:
        self.batch_size, self.concurrency, self.before = batch_size, concurrency, before
        self.reply = reply or answer
        self.turns = turns
        self.requests: list[Request] = []
        self.under_way = self.most = 0

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            for _ in range(self.turns):
                await asyncio.sleep(0)
            self.before(requests)
        finally:
            self.under_way -= 1
        self.requests += requests
        return [self.reply(request) for request in requests]

    async def close(self) -> None:
        """Nothing was started."""


def answer(request: Request) -> Completion:
    if "barren" in request.text:
        return Completion("nothing to ask", "stop", len(request.prompt), 3)
    word = request.text.split()[1]
    text = f"<QUE> What of {word}? <ANS> It is {word}. </END>\n\n<QUE> cut"
    return Completion(text, "length", len(request.prompt), 50)
