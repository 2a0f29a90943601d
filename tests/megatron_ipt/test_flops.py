"""FLOP a token: the two figures that are printed elsewhere, and matrices counted one by one."""

from __future__ import annotations

import pytest

from megatron_ipt.architecture import Architecture
from megatron_ipt.training.flops import flops_per_token, rates

LLAMA_3_8B = Architecture(
    num_layers=32,
    hidden_size=4096,
    ffn_hidden_size=14336,
    num_attention_heads=32,
    num_query_groups=8,
    kv_channels=128,
    layernorm_epsilon=1e-5,
    rotary_base=5e5,
    vocab_size=128256,
)


def test_llama_3_8b_has_the_published_figures() -> None:
    """Bridge's with causal attention, Megatron's and torchtitan's with the full square."""
    found = flops_per_token(LLAMA_3_8B, 8192)
    assert f"{found.model:.3e} {found.hardware:.3e}" == "5.147e+10 5.791e+10"


def test_a_model_whose_heads_are_not_its_width_and_whose_table_is_tied() -> None:
    """Each product of (rows x inner x columns) is 2 FLOP times all three, three times over with the backward pass."""
    tiny = Architecture(2, 6, 10, 4, 2, 3, 1e-5, 1e4, 50, share_embeddings_and_output_weights=True)
    length = 7
    layer = [(length, 6, 12), (length, 6, 6), (length, 6, 6), (length, 12, 6), *[(length, 6, 10)] * 3]
    scores = [(length, 3, length), (length, length, 3)] * 4
    whole = sum(2 * a * b * c for a, b, c in [*layer, *scores] * 2 + [(length, 6, 50)])
    assert flops_per_token(tiny, length).hardware == pytest.approx(3 * whole / length)


def test_rates_are_of_one_rank() -> None:
    found = rates(flops_per_token(LLAMA_3_8B, 8192), tokens=80_000, seconds=2.0, ranks=4)
    assert found["model_flops_per_second_per_rank"] == pytest.approx(5.147e14, rel=1e-3)
    assert found["hardware_flops_per_second_per_rank"] == pytest.approx(5.791e14, rel=1e-3)
