"""One chain on its way: what is asked next, and what has been answered (no effects).

A text that yields no pair, or that the engine failed on, neither joins nor continues the chain (paper, section 2.2);
the texts after it go on without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from data_prep.records import AugmentedText
from data_prep.synthesis.engines import Completion
from data_prep.synthesis.prompts import Prompt, Prompter
from data_prep.synthesis.wire import Rejection, parse

NO_PAIRS = "no_pairs"
ENGINE_FAILED = "engine_failed"


@dataclass
class Conversation:
    """A chain over its rounds.

    `texts` holds those asked about so far, with their pairs; `failed` the engine's words, and `rejected` the fragments
    that were no pairs, by a text's place; `counts` sums pairs, shots, shots_dropped, prompt_tokens and
    completion_tokens.
    """

    planned: Sequence[AugmentedText]
    texts: list[AugmentedText] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    rejected: dict[int, list[Rejection]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    _shots: list[list[int]] = field(default_factory=list)
    _asked: Prompt | None = None

    @property
    def is_over(self) -> bool:
        return len(self.texts) == len(self.planned)

    @property
    def next_text(self) -> AugmentedText:
        return self.planned[len(self.texts)]

    def ask(self, prompter: Prompter) -> Prompt:
        """The prompt for the next text."""
        self._asked = prompter.prompt(self.next_text, self._shots, self.planned[0])
        self.counts["shots"] += self._asked.shown
        self.counts["shots_dropped"] += self._asked.dropped
        return self._asked

    def take(self, completion: Completion, prompter: Prompter) -> None:
        """The answer to what was asked last."""
        assert self._asked is not None
        pairs, rejections = parse(completion.text)
        if pairs and len(self.texts) + 1 < len(self.planned):
            self._shots.append([*self._asked.opening, *prompter.wire.closing(pairs)])
        if rejections:
            self.rejected[len(self.texts)] = rejections
        self.counts["pairs"] += len(pairs)
        self.counts["prompt_tokens"] += completion.prompt_tokens
        self.counts["completion_tokens"] += completion.completion_tokens
        self.texts.append(replace(self.next_text, pairs=tuple(pairs)))
        self._asked = None

    def fail(self, words: str) -> None:
        """No answer to what was asked last, and why, in the engine's words."""
        self.failed[len(self.texts)] = words
        self.texts.append(self.next_text)
        self._asked = None

    def reason(self, place: int) -> str:
        """Why the text at that place has no pairs."""
        return f"{ENGINE_FAILED}: {self.failed[place]}" if place in self.failed else NO_PAIRS


def words(error: BaseException) -> str:
    """An error in its own words, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
