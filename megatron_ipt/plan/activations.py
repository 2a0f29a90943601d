"""Bytes of activations that a rank keeps between forward and backward, by arithmetic.  Pure.

A layer keeps, in the training's number format and a token: the inputs and the outputs of its two norms (4 x hidden,
split by tensor parallelism under sequence parallelism, else whole on each rank), and, always split: query and attention
output (heads x width each), key and value (groups x width each), both halves of the feed-forward layer's input and
their product (3 x ffn).  Attention keeps no scores: both kinds of layers use a fused kernel.  Under FP8, Transformer
Engine keeps the inputs of matrix products in one byte, so this is above what it takes.  A context-parallel rank has its
part of the tokens; under document masks or a window it keeps the gathered keys and values too, one of each a query
head.  Not counted: embeddings, logits and buffers.

A pipeline rank keeps as many micro batches as the schedule has in flight (megatron-core's schedules.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ipt.architecture import Architecture
from megatron_ipt.settings import TrainSettings


def layer_bytes(architecture: Architecture, train: TrainSettings) -> int:
    """Bytes of one layer and one micro batch on a rank."""
    heads, groups = architecture.num_attention_heads, architecture.num_query_groups
    tensor = train.tensor_model_parallel_size
    norms = 4 * architecture.hidden_size // (tensor if train.sequence_parallel else 1)
    attention = 2 * (heads + groups) * architecture.kv_channels
    if (train.reset_attention_mask or architecture.window_size) and train.context_parallel_size > 1:
        attention += 2 * heads * architecture.kv_channels * train.context_parallel_size
    split = (attention + 3 * architecture.ffn_hidden_size) // tensor
    tokens = train.micro_batch_size * train.seq_length // train.context_parallel_size
    return (norms + split) * tokens * (2 if train.bf16 else 4)


def in_flight(train: TrainSettings, pipeline_rank: int, chunks: Sequence[int], micro_batches: int) -> int:
    """Layers x micro batches that a rank with these layers in its `chunks` keeps at the fullest moment, at most.

    Exact where its chunks are alike; else the passes in flight are counted in the fullest chunks first.
    """
    stages = train.pipeline_model_parallel_size
    behind = stages - pipeline_rank - 1
    warm_up = behind if len(chunks) == 1 else 2 * behind + (len(chunks) - 1) * stages
    passes, kept = min(warm_up + 1, micro_batches * len(chunks)), 0
    for layers in sorted(chunks, reverse=True):
        here = min(passes, micro_batches)
        kept, passes = kept + here * layers, passes - here
    return kept


def kept_bytes(
    architecture: Architecture, train: TrainSettings, pipeline_rank: int, chunks: Sequence[int], micro_batches: int
) -> int | None:
    """Bytes of activations on a rank; None where the recipe recomputes some of them."""
    if train.recompute_granularity:
        return None
    return in_flight(train, pipeline_rank, chunks, micro_batches) * layer_bytes(architecture, train)
