"""What every engine is: requests in, completions with finish reason and token counts out.

An engine is told nothing of documents, pairs or rounds.  Two kinds of machine stand behind one interface: a server
that batches by itself takes each request by itself, as soon as its prompt is known (`batch_size` 1, many calls under
way); a model in this process takes batches, which are made of what a shard has, whoever is quick or slow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt as token ids.  `text` is the raw text that its last example is about; `seed` is of sampling.

    Requests of one `group` begin alike, each with all of the one before: the machine that had the last has it cached.
    `follows` is how many texts with pairs came before in its group: where some must wait, those with more go first.
    """

    prompt: Sequence[int]
    text: str
    seed: int
    group: int | None = None
    follows: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote after a prompt.

    `finish_reason` is "stop" when it ended by itself and "length" when it was cut off;
    `completion_tokens` counts the ids generated, a closing special id included.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class Engine(Protocol):
    """A generator of completions; `batch_size` requests go into a call, `concurrency` calls are under way at once."""

    @property
    def batch_size(self) -> int: ...

    @property
    def concurrency(self) -> int: ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything, other than a request, that a completion depends on; JSON values only."""

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion a request, in their order; raises whatever goes wrong, in the engine's own words."""

    async def close(self) -> None:
        """Ends what was started for it."""
