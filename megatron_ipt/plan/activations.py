"""Bytes of activations that a rank keeps between forward and backward, by arithmetic.  Pure.

A layer keeps, in the training's number format and a token: the inputs and the outputs of its two norms (4 x hidden,
split by tensor parallelism under sequence parallelism, else whole on each rank), and, always split: query and attention
output (heads x width each), key and value (groups x width each), both halves of the feed-forward layer's input and
their product (3 x ffn).  Attention keeps no scores: both kinds of layers use a fused kernel.  Under FP8, Transformer
Engine keeps the inputs of matrix products in one byte, so this is above what it takes.  A context-parallel rank has its
part of the tokens; under document masks or a window it keeps the gathered keys and values too, one of each a query
head.  Not counted: embeddings, logits and buffers.

What is recomputed (megatron-core's transformer_block.py and transformer_layer.py) is kept for one group of layers, or
one layer, at a time, while its backward pass runs; of the others

    full         the input of each group of layers (1 x hidden) stays
    core_attn    the gathered keys and values go; query, key, value and output are its neighbours', and stay
    mlp          3 x ffn go
    layernorm    the outputs of the two norms go (2 x hidden), that of the second not where mlp has it for its input

A pipeline rank keeps as many micro batches as the schedule has in flight (megatron-core's schedules.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ipt.architecture import Architecture
from megatron_ipt.settings import TrainSettings


def layer_bytes(architecture: Architecture, train: TrainSettings, recomputed: Sequence[str] = ()) -> int:
    """Bytes of one layer and one micro batch on a rank; `recomputed` are parts of it that it does not keep."""
    norms = 4 - ("layernorm" in recomputed) * (1 if "mlp" in recomputed else 2)
    heads, groups = architecture.num_attention_heads, architecture.num_query_groups
    split = 2 * (heads + groups) * architecture.kv_channels
    gathers = (train.reset_attention_mask or architecture.window_size) and train.context_parallel_size > 1
    if gathers and "core_attn" not in recomputed:
        split += 2 * heads * architecture.kv_channels * train.context_parallel_size
    if "mlp" not in recomputed:
        split += 3 * architecture.ffn_hidden_size
    whole = _hidden(architecture, train, norms) + split // train.tensor_model_parallel_size
    return whole * _bytes_a_number(train)


def chunk_bytes(architecture: Architecture, train: TrainSettings, layers: int) -> tuple[int, int]:
    """Bytes of a chunk of `layers` layers: of each micro batch in flight, and once more where some are recomputed."""
    whole = layer_bytes(architecture, train)
    if train.recompute_granularity is None or not layers:
        return layers * whole, 0
    if train.recompute_granularity == "selective":
        kept = layer_bytes(architecture, train, train.recompute_modules or ("core_attn",))
        return layers * kept, whole - kept
    count = min(train.recompute_num_layers or 1, layers)
    entry = _hidden(architecture, train, 1) * _bytes_a_number(train)
    if train.recompute_method == "uniform":
        return -(-layers // count) * entry, count * whole
    return count * entry + (layers - count) * whole, whole


def in_flight(train: TrainSettings, pipeline_rank: int, chunks: Sequence[int], micro_batches: int) -> int:
    """What a rank keeps at the fullest moment, at most, if each chunk keeps `chunks` of a micro batch (bytes, layers).

    Exact where its chunks are alike; else the passes in flight are counted in the fullest chunks first.
    """
    stages = train.pipeline_model_parallel_size
    behind = stages - pipeline_rank - 1
    warm_up = behind if len(chunks) == 1 else 2 * behind + (len(chunks) - 1) * stages
    passes, kept = min(warm_up + 1, micro_batches * len(chunks)), 0
    for of_chunk in sorted(chunks, reverse=True):
        here = min(passes, micro_batches)
        kept, passes = kept + here * of_chunk, passes - here
    return kept


def kept_bytes(
    architecture: Architecture, train: TrainSettings, pipeline_rank: int, chunks: Sequence[int], micro_batches: int
) -> int:
    """Bytes of activations on a rank whose chunks have so many layers."""
    found = [chunk_bytes(architecture, train, layers) for layers in chunks]
    kept = in_flight(train, pipeline_rank, [each for each, _ in found], micro_batches)
    return kept + max(once for _, once in found)


def _hidden(architecture: Architecture, train: TrainSettings, times: int) -> int:
    """Numbers of so many hidden states a token on a rank."""
    return times * architecture.hidden_size // (train.tensor_model_parallel_size if train.sequence_parallel else 1)


def _bytes_a_number(train: TrainSettings) -> int:
    """Bytes of one number for each token of a micro batch on a rank."""
    return train.micro_batch_size * train.seq_length // train.context_parallel_size * (2 if train.bf16 else 4)
