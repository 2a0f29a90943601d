"""What a check is: a function made for one corpus, asked about each pair in turn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from data_prep.records import AugmentedText, Pair
from data_prep.settings import CheckSettings

# Why the pair must go, or None.  Asked in the order of the chains, and only about pairs that every
# check before has let pass.
Judge = Callable[[Pair, AugmentedText], str | None]

# Makes a judge; it may read the chains first.
JudgeMaker = Callable[[CheckSettings, Path], Judge]


@runtime_checkable
class TextJudge(Protocol):
    """A judge of pairs that judges their texts too."""

    def __call__(self, pair: Pair, text: AugmentedText) -> str | None: ...

    def of_text(self, text: AugmentedText) -> str | None:
        """Why nobody may train on the text, with pairs or without; then every pair of it goes, for this reason."""
