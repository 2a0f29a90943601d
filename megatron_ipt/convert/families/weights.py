"""What every family says of a Megatron parameter: which Hugging Face tensors it is made of, and how it is laid out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["vocabulary", "replicated", "columns", "qkv", "gate_up"]


@dataclass(frozen=True, slots=True)
class Weights:
    """The Hugging Face tensors that one Megatron parameter is made of, and how it is laid out.

    vocabulary  rows are tokens, split over tensor-parallel ranks, padded at the end
    replicated  the same on every rank
    columns     split by columns over tensor-parallel ranks
    qkv         query, key, value: for each key/value group `[its query heads; k; v]`, groups split over ranks
    gate_up     gate, up: each rank holds `[its rows of gate; its rows of up]`
    """

    kind: Kind
    names: tuple[str, ...]
