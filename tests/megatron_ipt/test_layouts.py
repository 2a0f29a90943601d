"""Every layout computes what one process computes, and one process what plain torch computes.

Real torchrun processes on gloo, fp32, 10 steps from one checkpoint that each layout reads into its own shards.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyRun, environment, losses

LAYOUTS = {
    "tp2": ["train.tensor_model_parallel_size=2", "train.use_distributed_optimizer=false"],
    "tp2_sp": ["train.tensor_model_parallel_size=2", "train.sequence_parallel=true"],
    "pp2": ["train.pipeline_model_parallel_size=2"],
    "pp2_vpp2": ["train.pipeline_model_parallel_size=2", "train.virtual_pipeline_model_parallel_size=2"],
    "dp2_distributed_optimizer": ["train.use_distributed_optimizer=true"],
    "dp2_overlap": ["train.overlap_grad_reduce=true", "train.overlap_param_gather=true"],
}


@pytest.fixture(scope="module")
def one_process(tiny: TinyRun, train_layouts: Any) -> Any:
    start = [f"train.load={tiny.init}", "train.finetune=true"]
    jobs = {"one_process": start, "micro_batch_4": [*start, "train.micro_batch_size=4"]}
    return train_layouts(1, jobs)


@pytest.fixture(scope="module")
def two_processes(tiny: TinyRun, train_layouts: Any) -> Any:
    start = [f"train.load={tiny.init}", "train.finetune=true"]
    return train_layouts(2, {name: [*start, *overrides] for name, overrides in LAYOUTS.items()})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_has_the_loss_of_one_process(layout: str, one_process: Any, two_processes: Any) -> None:
    expected, found = losses(one_process["one_process"]), losses(two_processes[layout])
    assert len(found) == 10
    assert max(abs(a - b) for a, b in zip(expected, found, strict=True)) <= 2e-6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_has_the_gradient_norm_and_validation_of_one_process(
    layout: str, one_process: Any, two_processes: Any
) -> None:
    for kind, field, tolerance in (("train", "grad_norm", 2e-5), ("validation", "loss", 2e-6)):
        expected = [row[field] for row in one_process["one_process"] if row["kind"] == kind]
        found = [row[field] for row in two_processes[layout] if row["kind"] == kind]
        assert max(abs(a - b) for a, b in zip(expected, found, strict=True)) <= tolerance


def test_the_loss_does_not_depend_on_the_micro_batch(one_process: Any) -> None:
    """The last sequence of a source is padded, so micro batches hold unlike numbers of unmasked tokens."""
    rows = one_process["one_process"]
    assert len({row["loss_tokens"] for row in rows if row["kind"] == "train"}) > 1
    pairs = zip(losses(rows), losses(one_process["micro_batch_4"]), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= 2e-6


def test_one_process_has_the_loss_of_plain_torch(tiny: TinyRun, one_process: Any, tmp_path: Path) -> None:
    out = tmp_path / "plain.json"
    script = Path(__file__).with_name("plain_loop.py")
    command = [sys.executable, script, tiny.hf, tiny.blend, "10", "8", "1e-3", out]
    subprocess.run(list(map(str, command)), check=True, env=environment())
    plain = json.loads(out.read_text(encoding="utf-8"))
    ours = losses(one_process["one_process"])
    assert max(abs(a - b) for a, b in zip(plain["losses"], ours, strict=True)) <= 1e-5
    norms = [row["grad_norm"] for row in one_process["one_process"] if row["kind"] == "train"]
    assert max(abs(a - b) / a for a, b in zip(plain["norms"], norms, strict=True)) <= 1e-4
    assert ours[-1] < ours[0] - 0.3  # it learns: the comparison is not of two models that stand still
