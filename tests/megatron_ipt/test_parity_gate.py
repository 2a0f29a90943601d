"""Training refuses to start when loaded weights do not give transformers' logits."""

from __future__ import annotations

from typing import Any

import pytest

WRONG = {
    "rms_epsilon": ["model.layernorm_epsilon=1e-6"],
    "rope_theta": ["model.rotary_base=100000"],
    "head_order": ["swap_heads"],
}


@pytest.fixture(scope="module")
def gated(train_layouts: Any) -> Any:
    return train_layouts(1, {"right": ["train.train_iters=2"], **WRONG})


def test_right_weights_pass_and_train(gated: Any) -> None:
    parity = gated["right"][0]
    assert parity["kind"] == "parity"
    assert parity["tokens"] >= 512
    assert parity["dloss"] <= 1e-5
    assert parity["max_dlogit"] <= 1e-3
    assert [row["kind"] for row in gated["right"]].count("train") == 2


LAYOUTS = {
    "tp2_sp": ["train.tensor_model_parallel_size=2", "train.sequence_parallel=true"],
    "pp2_vpp2": ["train.pipeline_model_parallel_size=2", "train.virtual_pipeline_model_parallel_size=2"],
}


@pytest.fixture(scope="module")
def gated_layouts(train_layouts: Any) -> Any:
    return train_layouts(
        2, {f"gate_{name}": [*overrides, "train.train_iters=1"] for name, overrides in LAYOUTS.items()}
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_rank_reads_its_own_slices(layout: str, gated_layouts: Any) -> None:
    """Weights go from safetensors straight into shards, and the joined logits are transformers'."""
    parity = gated_layouts[f"gate_{layout}"][0]
    assert parity["kind"] == "parity"
    assert parity["dloss"] <= 1e-5
    assert parity["max_dlogit"] <= 1e-3


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_model_is_refused_before_step_1(fault: str, gated: Any) -> None:
    error = gated[fault]["error"]
    assert "does not compute what transformers computes" in error
    assert "\n" not in error
