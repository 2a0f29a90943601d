"""What a run makes for the GPU, on this machine with stand-ins: when graphs are captured, and which buffers are asked.

Capturing itself, and what it computes, is of tests/gpu.
"""

from __future__ import annotations

from typing import Any

import pytest
from conftest import TinyRun
from forks import forked_python

RUN = """
import json, sys
from pathlib import Path
from types import ModuleType
from megatron_ipt import pretrain
from megatron_ipt.mcore import config, graphs, parallel, user_buffers
from megatron_ipt.recipe import load_recipe
from megatron.core.distributed import DistributedDataParallel
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron_ipt.mcore import model as models
told, weights, runs = [], [], []

def recorded(owner, name, word):
    real = getattr(owner, name)
    def noting(*arguments, **options):
        weights.append(word)
        return real(*arguments, **options)
    setattr(owner, name, noting)

recorded(DistributedDataParallel, "zero_grad_buffer", "zeroed")
recorded(DistributedOptimizer, "prepare_model_params_for_param_sync", "staged")
recorded(models, "run_batch", "forward")
synced = DistributedDataParallel.start_param_sync
def forced(chunk, *arguments, force_sync=False, **options):
    weights.extend(["gathered"] * force_sync)
    return synced(chunk, *arguments, force_sync=force_sync, **options)
DistributedDataParallel.start_param_sync = forced

class Recorder:
    def __init__(self, model, config, seq_length, micro_batch_size, optimizers):
        self.model, self.made = model, False
        told.append(["made", len(model), config.cuda_graph_impl, seq_length, micro_batch_size, len(optimizers)])
    def hooks(self):
        return [len(chunk.remove_forward_pre_hook_handles) > 0 for chunk in self.model]
    def capture_finished(self): return self.made
    def graphs_created(self): return self.made
    def create_cudagraphs(self):
        self.made = True
        phase = runs[-1].watchdog._where[1].name
        told.append(["captured", *self.hooks(), get_num_microbatches(), phase])
    def cuda_graph_set_manual_hooks(self): told.append(["by hand", *self.hooks()])
    def delete_cuda_graphs(self): told.append(["deleted"])

class Engine(ModuleType):
    class UserBufferQuantizationMode:
        def __class_getitem__(cls, name): return name
    def initialize_ub(self, **given): told.append(["buffers", given])
    def destroy_ub(self): told.append(["freed"])

graphs.TECudaGraphHelper = Recorder
sys.modules["transformer_engine.pytorch.module.base"] = Engine("base")
config.check_runs_here = lambda *_: None
config.refuse = lambda _: None  # one rank has no sequence parallelism
step = pretrain.training_step
def noted(run, loader):
    told.append(["step", run.iteration + 1])
    runs.append(run)
    return step(run, loader)
pretrain.training_step = noted
found = {}
with parallel.distributed():
    for name, overrides in JOBS.items():
        recipe = load_recipe(Path(RECIPE), overrides)
        pretrain.pretrain(recipe)
        lines = (Path(recipe.output_dir) / "train" / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        losses = [row["loss"] for row in rows if row["kind"] == "train"]
        gates = [row["passed"] for row in rows if row["kind"] == "parity"]
        found[name] = {"told": list(told), "losses": losses, "gates": gates, "weights": list(weights)}
        told.clear(), weights.clear()
print(json.dumps(found))"""

OVERLAPPED = ["train.overlap_grad_reduce=true", "train.overlap_param_gather=true"]
PACKED = [
    *("train.reset_attention_mask=true", "train.reset_position_ids=true", "train.train_iters=0"),
    "train.transformer_config={cuda_graph_impl: transformer_engine, cuda_graph_modules: [mlp]}",
]
GRAPHS = "train.transformer_config={cuda_graph_impl: transformer_engine, cuda_graph_warmup_steps: 2}"


@pytest.fixture(scope="module")
def ran(tiny: TinyRun) -> Any:
    file = tiny.folder / "overlap.yaml"
    file.write_text("qkv_fprop: {method: ring_exchange, num_sm: 2}\n", encoding="utf-8")
    short = ["train.held_out=null", "train.train_iters=4"]
    overlap = ["train.transformer_config={tp_comm_overlap: true}", f"train.tp_comm_overlap_cfg={file}"]
    jobs = {
        "graphs": [*short, *OVERLAPPED, GRAPHS],
        "graphs_off": short,
        "validated": [*OVERLAPPED, "train.train_iters=1", "train.eval_iters=1"],
        "documents": [*short, *PACKED],
        "buffers": [*short, *overlap, "train.train_iters=1"],
    }
    given = {name: [f"output_dir={tiny.folder / name}", *overrides] for name, overrides in jobs.items()}
    return forked_python(f"RECIPE, JOBS = {str(tiny.recipe)!r}, {given!r}\n{RUN}")


def test_graphs_are_captured_once_after_the_warm_up(ran: Any) -> None:
    """Between steps 2 and 3, with what gathers weights by layer taken out, and put before the graphs after it.

    It takes minutes for a large model, and no rank must hold that for a hang.
    """
    assert ran["graphs"]["told"] == [
        ["made", 1, "transformer_engine", 64, 2, 1],
        ["step", 1],
        ["step", 2],
        ["step", 3],
        ["captured", False, 4, "FREE"],
        ["by hand", True],
        ["step", 4],
        ["deleted"],
    ]


def test_layers_are_captured_in_the_shape_in_which_documents_lie(ran: Any) -> None:
    """Behind each other: two sequences of 64 places are a row of 128."""
    assert ran["documents"]["told"] == [["made", 1, "transformer_engine", 128, 1, 1]]


def test_a_run_with_graphs_is_gated_and_trains_as_one_without(ran: Any) -> None:
    """The stand-in captures nothing, so losses are those of a plain run, and the gate builds a model without graphs."""
    assert ran["graphs_off"]["told"] == [["step", number] for number in range(1, 5)]
    assert ran["graphs"]["losses"] == pytest.approx(ran["graphs_off"]["losses"], abs=2e-6)
    assert ran["graphs"]["gates"] == ran["graphs_off"]["gates"] == [True]


def test_buffers_are_asked_for_once_and_given_back(ran: Any) -> None:
    told = ran["buffers"]["told"]
    assert told[0] == [
        "buffers",
        {
            "shape": [128, 64],
            "tp_size": 1,
            "quantization_modes": ["NONE"],
            "ub_cfgs": [{"qkv_fprop": {"method": "ring_exchange", "num_sm": 2}}],
            "bootstrap_backend": "nccl",
        },
    ]
    assert told[1:] == [["step", 1], ["freed"]] and ran["buffers"]["gates"] == [True]


def test_weights_are_staged_and_gathered_before_they_are_used(ran: Any) -> None:
    """Before a validation all, since a captured layer gathers none; in a step once the gradients are zero (MXFP8)."""
    validation, step = ["staged", "gathered", "forward"], ["zeroed", "staged", "forward"]
    assert ran["validated"]["weights"][:9] == [*validation, *step, *validation]
