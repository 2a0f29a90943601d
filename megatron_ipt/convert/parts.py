"""The Hugging Face tensors of one whole Megatron weight: the inverse of what load_hf.py joins."""

from __future__ import annotations

import torch

from megatron_ipt.architecture import Architecture
from megatron_ipt.convert.families import FAMILIES


def split(name: str, value: torch.Tensor, architecture: Architecture) -> dict[str, torch.Tensor]:
    """Views of `value`, the Megatron weight `name`, by Hugging Face name; padding of the vocabulary is cut.

    Of a value on the meta device: the shapes.
    """
    weights = FAMILIES[architecture.family].weights_of(name, architecture)
    parts: tuple[torch.Tensor, ...] = (value,)
    if weights.kind == "qkv":
        parts = split_qkv(value, architecture)
    elif weights.kind == "gate_up":
        parts = value.chunk(2)
    elif weights.kind == "vocabulary":
        parts = (value[: architecture.vocab_size],)
    return dict(zip(weights.names, parts, strict=True))


def shapes(name: str, shape: tuple[int, ...], architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that `split` gives."""
    parts = split(name, torch.empty(shape, device="meta"), architecture)
    return {part: tuple(tensor.shape) for part, tensor in parts.items()}


def split_qkv(value: torch.Tensor, architecture: Architecture) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The inverse of `load_hf.fuse_qkv`: query, key and value rows out of `[q heads; k; v]` a group."""
    groups, width = architecture.num_query_groups, architecture.kv_channels
    queries = architecture.num_attention_heads // groups * width
    rest = value.shape[1:]
    grouped = value.reshape(groups, queries + 2 * width, *rest)
    query, key, values = grouped.split((queries, width, width), dim=1)
    return query.reshape(-1, *rest), key.reshape(-1, *rest), values.reshape(-1, *rest)
