"""What is not taken in: a place, a word to count by, and the details in a few words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LONGEST_DETAIL = 200
"""Characters that are kept of what a library says."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A row that is no document, or a file of which nothing more can be read.

    `where` is FILE:LINE of JSONL, FILE:ROW of Parquet, NAME:ROW of a Hugging Face dataset, each counted from 1, or FILE
    for what concerns the whole of it.
    """

    where: str
    reason: str
    detail: str = ""


type Placed[T] = tuple[str, T | Drop]
"""A thing, or why there is none, with its place."""
type Row = dict[str, Any]


def dropped(where: str, reason: str, detail: object) -> Placed[Any]:
    """A drop with its place, and `detail`, an error mostly, in one short line."""
    return where, Drop(where, reason, " ".join(str(detail).split())[:LONGEST_DETAIL])
