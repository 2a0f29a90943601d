"""Whatever an engine does wrong with a question is its reply: nothing waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from scripted_engine import ScriptedEngine

from data_prep.checks.asking import MOST_FAILURES, Asking, Respondent
from data_prep.errors import UserError
from data_prep.synthesis.engines.contract import Completion, Request


class ShortOfReplies(ScriptedEngine):
    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return (await super().generate(requests))[:-1]


class QuickToRefuse(ScriptedEngine):
    """A server refuses a prompt that is too long at once, and takes its time for an answer."""

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        if "long" in requests[0].text:
            raise ValueError("too long")
        return await super().generate(requests)


def encode(prompt: str) -> list[int]:
    if "odd" in prompt:
        raise ValueError("no id for this sign")
    return list(map(ord, prompt))


def ask(engine: ScriptedEngine, prompts: Sequence[str]) -> list[Completion | Exception]:
    with asyncio.Runner() as runner:
        asking = Asking(Respondent(engine, encode), runner.get_loop(), "the model", "model")
        replies = runner.run(asking.replies([asking.ask(prompt) for prompt in prompts]))
        runner.run(asking.stop())
    return replies


def test_an_engine_that_answers_too_few_has_failed_on_the_batch():
    first, second = ask(ShortOfReplies(batch_size=2), ["a b", "a c"])
    assert isinstance(first, ValueError) and isinstance(second, ValueError)


def test_a_prompt_without_ids_costs_its_batch_only():
    kept, *lost = ask(ScriptedEngine(batch_size=1), ["a b", "odd one"])
    assert isinstance(kept, Completion) and "What of b?" in kept.text
    assert [str(error) for error in lost] == ["no id for this sign"]


def test_refusals_that_overtake_answers_are_no_dead_engine():
    prompts = ["a long", "a b"] * (2 * MOST_FAILURES)
    replies = ask(QuickToRefuse(concurrency=len(prompts), turns=50), prompts)
    assert [isinstance(reply, Exception) for reply in replies] == [True, False] * (2 * MOST_FAILURES)
    with pytest.raises(
        UserError, match=f"model: the model fails .ValueError: too long., {MOST_FAILURES} times in a row"
    ):
        ask(QuickToRefuse(), ["a b", *["a long"] * MOST_FAILURES])


def test_a_batch_that_fails_is_one_failure():
    engine = ScriptedEngine(batch_size=2 * MOST_FAILURES, before=lambda requests: None)
    assert len(ask(engine, ["odd", *["a b"] * (4 * MOST_FAILURES)])) == 4 * MOST_FAILURES + 1
