"""What of a batch this rank computes, and what each token may attend to: context parallelism and document masks.

Context parallelism cuts a sequence into 2 x size chunks and gives rank r the chunks r and 2 x size - 1 - r (Megatron's
zigzag: each rank has as much of the causal triangle).  `reset_attention_mask` (Megatron's name) keeps attention within
a document, in one of two ways:

    size 1    Megatron's `thd` format: the sequences of a micro batch behind each other, and PackedSeqParams for where
              documents end.  Rotary positions begin anew with each document
    size > 1  a mask by place and segment for our attention (attention.py), on a GPU too, since in `thd` each document
              would have to divide by 2 x size.  Rotary positions are places in the sequence

Both have the same logits up to rounding: rotary attention depends on the distance of two tokens alone, and both tokens
are of one document.  For the same reason `reset_position_ids` without a document mask cannot be had: Megatron's rotary
embedding goes by place, never by `position_ids` (the recipe refuses it).
"""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from megatron.core import parallel_state as mpu
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_ipt.settings import TrainSettings

ALONG_SEQUENCE = ("tokens", "labels", "position_ids", "loss_mask")


@dataclass(frozen=True, slots=True)
class Inputs:
    """A micro batch as this rank's model takes it: `columns` are [batch, sequence] of ALONG_SEQUENCE.

    In the `thd` format that is [1, batch x sequence].  `attention_mask` is bool [batch, 1, queries, keys], True where a
    query must not look, with keys in the order in which ranks hold them; None means causal.
    """

    columns: Mapping[str, torch.Tensor]
    attention_mask: torch.Tensor | None
    packed_seq_params: PackedSeqParams | None


def inputs(batch: Mapping[str, torch.Tensor], train: TrainSettings) -> Inputs:
    """A micro batch of whole sequences -> this rank's part of it.  Without `segments` a sequence is one document."""
    columns = {name: batch[name] for name in ALONG_SEQUENCE if name in batch}
    segments = batch.get("segments") if train.reset_attention_mask else None
    size, rank = mpu.get_context_parallel_world_size(), mpu.get_context_parallel_rank()
    if size == 1 and segments is not None:
        return Inputs({name: column.reshape(1, -1) for name, column in columns.items()}, None, packed(segments))
    if size == 1:
        return Inputs(columns, None, None)
    mask = None if segments is None else blocked(segments, size, rank)
    here = places(batch["tokens"].shape[1], size, rank, batch["tokens"].device)
    return Inputs({name: column[:, here] for name, column in columns.items()}, mask, None)


def micro_batch_shape(train: TrainSettings) -> tuple[int, int]:
    """(sequence length, rows) of a micro batch of whole sequences in the format of `inputs`: `thd` has a single row."""
    rows = train.micro_batch_size
    packs = train.reset_attention_mask and mpu.get_context_parallel_world_size() == 1
    return (train.seq_length * rows, 1) if packs else (train.seq_length, rows)


@functools.lru_cache(maxsize=8)
def places(length: int, size: int, rank: int, device: torch.device) -> torch.Tensor:
    """Places in the sequence of the tokens that context-parallel rank `rank` holds, int64 [length / size]."""
    if size == 1:
        return torch.arange(length, device=device)
    chunks = torch.arange(length, device=device).view(2 * size, -1)
    return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]])


@functools.lru_cache(maxsize=8)
def gathered_places(length: int, size: int, device: torch.device) -> torch.Tensor:
    """Places in the sequence of what all ranks hold, in their order, int64 [length]."""
    return torch.cat([places(length, size, rank, device) for rank in range(size)])


@functools.lru_cache(maxsize=8)
def causally_blocked(
    length: int, size: int, rank: int, device: torch.device, behind: int | None = None
) -> torch.Tensor:
    """Where this rank's queries must not look: at later places, and at those more than `behind` places before.

    Bool [length / size, length], keys in the order in which ranks hold them.
    """
    distance = places(length, size, rank, device)[:, None] - gathered_places(length, size, device)[None, :]
    return distance < 0 if behind is None else (distance < 0) | (distance > behind)


def blocked(segments: torch.Tensor, size: int, rank: int) -> torch.Tensor:
    """`Inputs.attention_mask` for `segments`, [batch, length] of whole sequences."""
    length, device = segments.shape[1], segments.device
    queries, keys = segments[:, places(length, size, rank, device)], segments[:, gathered_places(length, size, device)]
    return (causally_blocked(length, size, rank, device) | (queries[:, :, None] != keys[:, None, :]))[:, None]


def packed(segments: torch.Tensor) -> PackedSeqParams:
    """Where documents end in the sequences of `segments`, [batch, length], laid behind each other."""
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    bounds = torch.cat([starts.flatten().nonzero().flatten(), segments.new_tensor([segments.numel()])])
    longest = int(bounds.diff().max())
    bounds = bounds.to(torch.int32)
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=longest, max_seqlen_kv=longest
    )


def whole(output: torch.Tensor, batch: int) -> torch.Tensor:
    """A model's output, [1 or batch, places, ...], as [batch, length, ...] of whole sequences; all ranks call it."""
    size = mpu.get_context_parallel_world_size()
    if size == 1:
        return output.reshape(batch, -1, *output.shape[2:])
    parts = [torch.empty_like(output) for _ in range(size)]
    torch.distributed.all_gather(parts, output.contiguous(), group=mpu.get_context_parallel_group())
    joined = torch.cat(parts, dim=1)
    return joined[:, gathered_places(joined.shape[1], size, joined.device).argsort()]
