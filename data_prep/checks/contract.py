"""What a check is: a function made for one corpus, asked about each pair in turn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_prep.records import AugmentedText, Pair
from data_prep.settings import CheckSettings

# Why the pair must go, or None.  Asked in the order of the chains, and only about pairs that every
# check before has let pass.
Judge = Callable[[Pair, AugmentedText], str | None]

# Makes a judge; it may read the chains first.
JudgeMaker = Callable[[CheckSettings, Path], Judge]
