"""What `ipt plan` counts of what stands on a rank, and of a save, against sums by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from forks import forked_python

CODE = """
import json, sys
from megatron_ipt.plan.layout import copied_bytes, static_bytes
from megatron_ipt.settings import TrainSettings

wanted, found = json.loads(sys.argv[1]), {}
for name, settings in wanted.items():
    train = TrainSettings.model_validate(settings)
    found[name] = [copied_bytes([100, 300], train, 16), static_bytes(100, 80, train, 4)]
print(json.dumps(found))
"""
# TP2 PP2 on two nodes of eight ranks: a stage a node, four copies of each part
BASE = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "nproc_per_node": 8, "async_save": True}
BASE |= {"global_batch_size": 8, "seq_length": 8, "train_iters": 1, "lr": 1.0}
CHEAP = {"dist_ckpt_optim_fully_reshardable": False}
EXPECTED = {
    "in the foreground": ({"async_save": False}, None),
    "any layout": ({}, 2 * 300 * (2 + 12)),
    "its own layout": (CHEAP, 2 * 300 * 2 + 8 * 300 * 12 // 4),
    "fp32": ({"bf16": False}, 2 * 300 * (4 + 12)),
    "plain Adam": ({"bf16": False, "use_distributed_optimizer": False, **CHEAP}, 2 * 300 * (4 + 8)),
    "nodes of two": ({"nproc_per_node": 2}, 2 * 300 * (2 + 12)),
    "nodes of two, its own": ({"nproc_per_node": 2, **CHEAP}, 2 * 300 * 2 + 2 * 300 * 12 // 4),
    "one node": ({"nproc_per_node": 16}, 2 * (100 + 300) * (2 + 12)),
}
SHORT = {"use_precision_aware_optimizer": True, "exp_avg_dtype": "bfloat16", "exp_avg_sq_dtype": "bfloat16"}
FP8 = {"fp8": "hybrid", "fp8_recipe": "tensorwise"}
# weight, gradient and a fourth of the optimizer's state of 100 parameters, 80 of them in matrices
STANDING = {
    "Adam in fp32": ({}, 100 * (2 + 4 + 12 / 4)),
    "12 bytes a parameter, shared out": ({"optimizer_config": SHORT}, 100 * (2 + 4 + (2 + 2 + 2) / 4)),
    "gradients in bf16": ({"optimizer_config": {**SHORT, "main_grads_dtype": "bfloat16"}}, 100 * (2 + 2 + 6 / 4)),
    "FP8 beside bf16": ({"transformer_config": FP8}, 100 * (2 + 4 + 12 / 4) + 2 * 80),
    "FP8, short moments, whole masters": (
        {"transformer_config": {**FP8, "fp8_param": True}, "optimizer_config": SHORT},
        100 * (2 + 4 + (4 + 2 + 2) / 4),
    ),
}


@pytest.fixture(scope="module")
def found() -> Any:
    both = {**EXPECTED, **STANDING}
    return forked_python(CODE, json.dumps({name: {**BASE, **settings} for name, (settings, _) in both.items()}))


@pytest.mark.parametrize("name", EXPECTED)
def test_the_host_copy_of_a_save_behind_training_is_counted(found: Any, name: str) -> None:
    assert found[name][0] == EXPECTED[name][1]


@pytest.mark.parametrize("name", STANDING)
def test_bytes_that_stand_all_the_time_follow_the_formats(found: Any, name: str) -> None:
    assert found[name][1] == STANDING[name][1]
