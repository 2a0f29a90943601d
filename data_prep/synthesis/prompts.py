"""Prompts of a chain: demonstrations, as many earlier texts with their pairs as fit, then the text to ask about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from data_prep.draws import draw
from data_prep.errors import UserError
from data_prep.records import AugmentedText
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.engines import Request
from data_prep.synthesis.wire import Ids, Wire, context_part

# Below this there is no room to show a text worth asking about [tokens].
SMALLEST_TEXT_ROOM = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is sent for a text: `opening` are the last ids of the request's prompt, those of the text itself.

    Of the shots there were, `shown` fit and `dropped`, the oldest ones, did not.
    """

    request: Request
    opening: list[int]
    shown: int
    dropped: int


class Prompter:
    """Makes prompts over one wire format.

    Raises:
        UserError: the demonstrations and the longest completion leave no room for a text.
    """

    def __init__(self, wire: Wire, settings: SynthesizeSettings, demonstrations: Sequence[AugmentedText] = ()) -> None:
        self.wire, self._seed = wire, settings.seed
        self._head = [token for shot in demonstrations for token in wire.example(shot)]
        self._room = settings.max_model_len - settings.max_new_tokens - len(self._head)
        if self._room < SMALLEST_TEXT_ROOM:
            shown = f"{settings.max_new_tokens} new and {len(self._head)} of demonstrations"
            problem = f"{self._room} tokens are left for a text after {shown}"
            raise UserError("max_model_len", problem, "raise it, or lower max_new_tokens, or show fewer demonstrations")
        self.text_limit = min(self._room, settings.max_text_tokens or self._room)
        self._counted: dict[str, Ids] = {}
        self._kept: dict[str, Ids] = {}

    def count(self, text: str) -> int:
        """Tokens that a text takes in a prompt."""
        return len(self._ids(text)) + 1

    def token_ends(self, text: str) -> Sequence[int] | None:
        """Characters behind which the tokens of a text end, where the tokenizer tells (`Wire.token_ends`)."""
        ends = self.wire.token_ends(text, self._ids(text))
        return None if ends is None else ends.tolist()

    def keep(self, text: str) -> None:
        """What was counted of a text that will be asked about is kept until then; all else is forgotten."""
        if text in self._counted:
            self._kept[text] = self._counted[text].astype(np.uint32)  # a copy: it may be a part of more
        self._counted = {"": self._ids("")}

    def _ids(self, text: str) -> Ids:
        if text not in self._counted:
            self._counted[text] = self.wire.context_ids(text)
        return self._counted[text]

    def most(self, text: str) -> int:
        """What `count` does not exceed: a byte a token, and BOS."""
        return len(context_part(text).encode()) + 1

    def prompt(self, text: AugmentedText, shots: Sequence[list[int]], first: AugmentedText) -> Prompt:
        """The prompt for `text`: the one for the text before, its answer, and this text, until shots are dropped.

        `first` is the text that the chain begins with.
        """
        known = self._kept.pop(text.text, None)
        ids_of_text = self.wire.context_ids(text.text) if known is None else known
        opening = [self.wire.bos_id, *ids_of_text.tolist()]
        kept = newest_that_fit(shots, self._room - len(opening))
        ids = [*self._head, *chain.from_iterable(kept), *opening]
        request = Request(ids, text.text, self._draw(text), self._draw(first), len(shots))
        return Prompt(request, opening, len(kept), len(shots) - len(kept))

    def _draw(self, text: AugmentedText) -> int:
        name = f"{text.source}\x1f{text.document_id}\x1f{text.start}\x1f{text.sample}"
        return draw(self._seed, name, "synthesize")


def newest_that_fit(shots: Sequence[list[int]], room: int) -> list[list[int]]:
    """The longest run of shots at the end whose tokens fit into `room`."""
    first = len(shots)
    while first > 0 and len(shots[first - 1]) <= room:
        first -= 1
        room -= len(shots[first])
    return list(shots[first:])
