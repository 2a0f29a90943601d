"""Engines that the benchmark of synthesis puts before, or around, the one that is measured."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from data_prep.synthesis.engines import Completion, Engine, Request
from data_prep.synthesis.wire import escape

ANSWER_WORDS = 230
ANSWER_TOKENS = 250
"""What an answer counts for: a question, an answer of so many words and the tags, a token each."""
ANSWER = f"<QUE> What is said of it? <ANS> {' '.join(['word'] * ANSWER_WORDS)} </END>"
ALL = 10**6
"""More requests than there are."""


def _with_one_pair(completion: Completion) -> Completion:
    answer = escape(completion.text.strip()) or "Nothing."
    return replace(completion, text=f"<QUE> What is said of it? <ANS> {answer} </END>")


class InstantEngine:
    """Answers each request with one pair, at once, or `latency` seconds after it was asked."""

    batch_size = 1

    def __init__(self, latency: float = 0.0) -> None:
        self.concurrency = ALL
        self.identity: Mapping[str, Any] = {"engine": "instant"}
        self._latency = latency

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        await asyncio.sleep(self._latency)
        return [Completion(ANSWER, "stop", len(request.prompt), ANSWER_TOKENS) for request in requests]

    async def close(self) -> None:
        """Nothing was started for it."""


class Watched:
    """An engine, with the requests in the order of their answers, and the most that were under way at once.

    With `batch_size` over 1 the schedule gives it the requests of a round together: round by round, that is.
    `one_pair`: whatever the model writes becomes the answer of one pair, so that each text has one and chains grow.
    """

    def __init__(self, engine: Engine, concurrency: int, batch_size: int = 1, one_pair: bool = False) -> None:
        self._engine, self.concurrency, self.batch_size = engine, concurrency, batch_size
        self._one_pair = one_pair
        self.requests: list[Request] = []
        self.completion_tokens = 0
        self.most_in_flight = 0
        self._in_flight = 0

    @property
    def identity(self) -> Mapping[str, Any]:
        return self._engine.identity

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self._in_flight += len(requests)
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            made = await self._engine.generate(requests)
        finally:
            self._in_flight -= len(requests)
        self.requests += requests
        self.completion_tokens += sum(completion.completion_tokens for completion in made)
        return [_with_one_pair(completion) for completion in made] if self._one_pair else made

    async def close(self) -> None:
        """Who made the engine closes it."""
