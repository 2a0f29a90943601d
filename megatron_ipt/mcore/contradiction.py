"""Two settings that cannot be together, as the files about FP8, CUDA graphs, overlap and kernels tell them.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from data_prep.errors import UserError


class Contradiction(NamedTuple):
    """Which key of the recipe is named, why it cannot be, and what works."""

    key: str
    problem: str
    mend: str


def refuse(found: Iterable[Contradiction]) -> None:
    """UserError for the first."""
    for key, problem, mend in found:
        raise UserError(key, problem, mend)
