"""What runs the synthesizer: prompts as token ids in, completions as text out.

An engine is told nothing of documents, pairs or rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length"]


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


class Engine(Protocol):
    """A generator of completions."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything, other than the prompt, that a completion depends on; JSON values only."""

    def generate(self, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        """One completion a prompt, in their order; raises whatever goes wrong."""
