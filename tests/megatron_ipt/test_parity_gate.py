"""Training refuses to start when loaded weights do not give transformers' logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import plain_loop
import pytest
from conftest import TinyRun, losses, run_ranks
from test_families import save

WRONG = {
    "rms_epsilon": ["model.layernorm_epsilon=1e-6"],
    "rope_theta": ["model.rotary_base=100000"],
    "head_order": ["swap_heads"],
    "bf16_epsilon": ["model.layernorm_epsilon=0.1", "train.parity_precision=bfloat16"],
}
BF16 = ["train.bf16=true", "train.parity_precision=bfloat16", "train.train_iters=3"]


LAYOUTS = {
    "tp2_sp": ["train.tensor_model_parallel_size=2", "train.sequence_parallel=true"],
    "pp2_vpp2": ["train.pipeline_model_parallel_size=2", "train.virtual_pipeline_model_parallel_size=2"],
}


@pytest.fixture(scope="module")
def gated(train_layouts: Any) -> Any:
    """All in two processes: data parallel, but for LAYOUTS."""
    layouts = {f"gate_{name}": [*overrides, "train.train_iters=1"] for name, overrides in LAYOUTS.items()}
    return train_layouts(2, {"right": ["train.train_iters=2"], "bf16": BF16, **WRONG, **layouts})


def test_right_weights_pass_and_train(gated: Any) -> None:
    parity = gated["right"][0]
    assert parity["kind"] == "parity"
    assert parity["tokens"] >= 512
    assert parity["dloss"] <= 1e-5
    assert parity["max_dlogit"] <= 1e-3
    assert [row["kind"] for row in gated["right"]].count("train") == 2


def test_a_model_that_fits_in_bf16_alone_is_compared_in_it(gated: Any) -> None:
    parity = gated["bf16"][0]
    assert (parity["kind"], parity["precision"]) == ("parity", "bfloat16")
    assert parity["kl"] <= 5e-3
    assert parity["dloss"] <= 5e-3
    exact = gated["right"][0]
    assert all(1e-6 < abs(parity[side] - exact[side]) < 1e-2 for side in ("loss_a", "loss_b"))  # both were in bf16


def test_masters_are_those_of_the_weights_that_were_loaded(gated: Any, tiny: TinyRun) -> None:
    """Masters made before the weights would put the fresh weights back in the first step."""
    plain = plain_loop.train(str(tiny.hf), str(tiny.blend), [8] * 3, 1e-3, dtype="bfloat16")["losses"]
    ours = losses(gated["bf16"])
    assert max(abs(a - b) for a, b in zip(plain, ours, strict=True)) <= 2e-3
    assert ours[2] < ours[0] - 0.02  # it moved: two models that stand still would agree too


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_rank_reads_its_own_slices(layout: str, gated: Any) -> None:
    """Weights go from safetensors straight into shards, and the joined logits are transformers'."""
    parity = gated[f"gate_{layout}"][0]
    assert parity["kind"] == "parity"
    assert parity["dloss"] <= 1e-5
    assert parity["max_dlogit"] <= 1e-3


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_model_is_refused_before_step_1(fault: str, gated: Any) -> None:
    error = gated[fault]["error"]
    assert "does not compute what transformers computes" in error
    assert "\n" not in error


@pytest.mark.long
def test_the_gate_passes_under_a_layout_that_does_not_divide_its_page(tmp_path: Path) -> None:
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3}
    save(tmp_path / "hf", {"model_type": "llama", **sizes})
    run_ranks(3, Path(__file__).with_name("gate_worker.py"), tmp_path / "hf", tmp_path / "out.json")
    parity = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert (parity["passed"], parity["tokens"]) == (True, 516)
