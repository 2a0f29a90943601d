"""Prompts of a chain: demonstrations, as many earlier texts with their pairs as fit, then the text to ask about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from data_prep.draws import draw
from data_prep.errors import UserError
from data_prep.records import AugmentedText
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.engines import Request
from data_prep.synthesis.wire import Wire, context_part

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

    def count(self, text: str) -> int:
        """Tokens that a text takes in a prompt."""
        return len(self.wire.opening(text))

    def most(self, text: str) -> int:
        """What `count` does not exceed: a byte a token, and BOS."""
        return len(context_part(text).encode()) + 1

    def prompt(self, text: AugmentedText, shots: Sequence[list[int]], first: AugmentedText) -> Prompt:
        """The prompt for `text`: the one for the text before, its answer, and this text, until shots are dropped.

        `first` is the text that the chain begins with.
        """
        opening = self.wire.opening(text.text)
        kept = newest_that_fit(shots, self._room - len(opening))
        ids = [*self._head, *chain.from_iterable(kept), *opening]
        request = Request(ids, text.text, self._draw(text), self._draw(first))
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
