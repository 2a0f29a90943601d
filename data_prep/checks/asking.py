"""Questions to a model about pairs: in batches, many at once; each gets a reply, or what went wrong with the engine.

What is asked together depends on the order of the questions only.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from data_prep.errors import UserError
from data_prep.synthesis.engines.contract import Completion, Engine, Request

# After so many calls that failed in a row, or where none succeeds, the engine is taken to be out of order.
MOST_FAILURES = 20
# The environment variable that holds the servers' key, as for synthesis.
SERVER_KEY = "OPENAI_API_KEY"


@dataclass(frozen=True, slots=True)
class Respondent:
    """The model that is asked; `encode` gives its ids of a prompt, in which nothing is a special token."""

    engine: Engine
    encode: Callable[[str], Sequence[int]]


def open_respondent(
    urls: Sequence[str], model: str, tokenizer_dir: Path, *, opening: str, new_tokens: int
) -> Respondent:
    """A model behind OpenAI-compatible servers, asked greedily for `new_tokens` tokens at most.

    Args:
        opening: how every reply begins, which the model goes on from.

    Raises:
        UserError: an address is none, or no tokenizer is there.
    """
    from data_prep.synthesis.engines.server import ServerEngine

    key = os.environ.get(SERVER_KEY)
    engine = ServerEngine(urls, model, max_new_tokens=new_tokens, temperature=0.0, api_key=key)
    return Respondent(engine, chat_encoder(tokenizer_dir, opening))


@dataclass(slots=True, eq=False)
class Question:
    """A prompt that is put to the model, and the reply, or what went wrong."""

    prompt: str
    reply: asyncio.Future[Completion | Exception]


@dataclass
class Asking:
    """Gathers questions to batches and puts them to the engine, so many batches at once as it takes.

    `role` and `setting` say in an error who is asked ("the judge") and which setting names its engine.
    """

    respondent: Respondent
    loop: asyncio.AbstractEventLoop
    role: str
    setting: str
    batch: list[Question] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    answered: int = 0
    failures: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.turn = asyncio.Semaphore(self.respondent.engine.concurrency)

    def ask(self, prompt: str) -> Question:
        """Adds a question to the batch, and sends the batch when it is full."""
        question = Question(prompt, self.loop.create_future())
        self.batch.append(question)
        if len(self.batch) >= self.respondent.engine.batch_size:
            self._send()
        return question

    async def replies(self, questions: Sequence[Question]) -> list[Completion | Exception]:
        """Waits for the replies; a batch that any of them is in goes out, full or not.

        Raises:
            UserError: MOST_FAILURES calls in a row failed; in the engine's own words.
        """
        if any(question in self.batch for question in questions):
            self._send()
        found = []
        for question in questions:
            found.append(await question.reply)
            self._count(found[-1])
        return found

    async def stop(self) -> None:
        """Ends what is under way, and the engine."""
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.respondent.engine.close()

    def check_it_ever_answered(self) -> None:
        """Raises: a UserError where calls have failed and none has succeeded."""
        if self.failures and not self.answered:
            self._give_up()

    def _send(self) -> None:
        if self.batch:
            task = self.loop.create_task(self._put(self.batch))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            self.batch = []

    async def _put(self, batch: list[Question]) -> None:
        async with self.turn:
            try:
                requests = [
                    Request(self.respondent.encode(each.prompt), each.prompt, _seed(each.prompt)) for each in batch
                ]
                done = await self.respondent.engine.generate(requests)
                replies: list[tuple[Question, Completion | Exception]] = list(zip(batch, done, strict=True))
            except Exception as error:  # whatever goes wrong with an engine is told with the pairs it cost
                replies = [(each, error) for each in batch]
        for each, reply in replies:
            each.reply.set_result(reply)

    def _count(self, reply: Completion | Exception) -> None:
        """Counts calls that failed in a row, in the order of the questions: a refusal comes sooner than an answer."""
        if not isinstance(reply, Exception):
            self.answered += 1
            self.failures.clear()
        elif not self.failures or self.failures[-1] is not reply:  # a batch has one error
            self.failures.append(reply)
        if len(self.failures) >= MOST_FAILURES:
            self._give_up()

    def _give_up(self) -> None:
        problem = f"{self.role} fails ({in_words(self.failures[-1])}), {len(self.failures)} times in a row"
        raise UserError(self.setting, problem, "mend the engine and try again")


def in_words(error: Exception) -> str:
    """What went wrong, in the engine's own words."""
    return f"{type(error).__name__}: {error}"


def _seed(prompt: str) -> int:
    return xxhash.xxh3_64_intdigest(prompt.encode()) >> 1


def chat_encoder(tokenizer_dir: Path, opening: str) -> Callable[[str], Sequence[int]]:
    """Encodes a prompt as a user's turn of the model's chat template and opens the reply; plainly where it has none.

    The prompt is ordinary text, whatever it spells: a pair cannot end its turn.  Small models that would repeat the
    question, or answer it, give what is asked for where their reply is begun for them.

    Raises:
        UserError: no tokenizer there.
    """
    from transformers import AutoTokenizer

    from data_prep.synthesis.wire import load_wire

    wire = load_wire(tokenizer_dir)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    if not tokenizer.chat_template:
        return lambda prompt: [wire.bos_id, *wire.encode(f"{prompt}\n{opening}")]
    mark = "\x02prompt\x03"
    turns = [{"role": "user", "content": mark}]
    head, _, tail = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True).partition(mark)
    before, after = (tokenizer.encode(part, add_special_tokens=False) for part in (head, tail))
    return lambda prompt: [*before, *wire.encode(prompt), *after, *wire.encode(opening)]
