"""The engine without a model: pairs mined from each text by rules, in the synthesizer's own wire format.

The rule-based arm of an ablation, an instant demonstration, and a bound on how fast all that is around an engine must
be.  What the rules are: `mining.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_prep.synthesis.engines.contract import Completion, Request
from data_prep.synthesis.engines.mining import PAIRS_A_TEXT, mine
from data_prep.synthesis.wire import pairs_part

# Part of the identity: raise it when the rules or their wordings change.
RULES_VERSION = 1


class RulesEngine:
    """Answers at once; a prompt's shots are not read, since rules do not learn from them.

    Args:
        pairs: most pairs a text.
        count: tokens of a completion; without it its words, parted by white space, are counted.
    """

    batch_size = 1
    concurrency = 1

    def __init__(self, *, pairs: int = PAIRS_A_TEXT, count: Callable[[str], int] | None = None) -> None:
        self.pairs, self.count = pairs, count

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"engine": "rules", "version": RULES_VERSION, "pairs": self.pairs}

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion a request, in their order; an empty one for a text that offers nothing."""
        return [self._complete(request) for request in requests]

    async def close(self) -> None:
        """Nothing was started."""

    def _complete(self, request: Request) -> Completion:
        text = pairs_part(mine(request.text, request.seed, self.pairs))
        tokens = self.count(text) if self.count is not None else len(text.split())
        return Completion(text, "stop", len(request.prompt), tokens)
