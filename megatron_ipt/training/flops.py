"""What a token of training costs, by two conventions that are both called FLOP/s in print.  Pure.

    model      attention counted as it is needed: a position reads those before it (Megatron Bridge since 25.09)
    hardware   attention counted as a full square (Megatron's and torchtitan's printed figure)

Matrices cost 6 FLOP a parameter and token (2 forward, 4 backward); embedding look-ups, norms and what recomputation
repeats are not counted.  Attention costs 12 x sequence x width of all heads a layer and token, counted in full.
Llama-3-8B at 8,192 tokens: 5.147e10 and 5.791e10 FLOP a token.
"""

from __future__ import annotations

from typing import NamedTuple

from megatron_ipt.architecture import Architecture


class Flops(NamedTuple):
    """FLOP a token, by the two conventions."""

    model: float
    hardware: float


def flops_per_token(architecture: Architecture, seq_length: int) -> Flops:
    """Forward and backward, for a sequence of `seq_length` that attends to all of itself, documents or not."""
    heads = architecture.num_attention_heads * architecture.kv_channels
    groups = architecture.num_query_groups * architecture.kv_channels
    hidden = architecture.hidden_size
    attention = 2 * hidden * (heads + groups)  # queries and output; keys and values
    layer = attention + 3 * hidden * architecture.ffn_hidden_size
    matrices = architecture.num_layers * layer + hidden * architecture.vocab_size
    square = 12.0 * architecture.num_layers * seq_length * heads
    return Flops(6 * matrices + square / 2, 6 * matrices + square)


def rates(flops: Flops, tokens: int, seconds: float, ranks: int) -> dict[str, float]:
    """The figures of a step for its metrics: FLOP a token, and FLOP/s of one rank."""
    speed = tokens / seconds / ranks
    return {
        "model_flops_per_token": flops.model,
        "hardware_flops_per_token": flops.hardware,
        "model_flops_per_second_per_rank": flops.model * speed,
        "hardware_flops_per_second_per_rank": flops.hardware * speed,
    }
