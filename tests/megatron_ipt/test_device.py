"""One table of device differences, and one Adam for both."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from conftest import ipt, run_python
from forks import forked_python

from data_prep.errors import UserError
from megatron_ipt.cli import pipeline, processes, train
from megatron_ipt.mcore import device
from megatron_ipt.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[2]
BRANCH = re.compile(r"cuda\.is_available|has_gpu|\.device\.type|\.is_cuda|device_count|['\"]cuda['\"]|['\"]nccl['\"]")
# where the question may be asked: the table, the shim that stands for a GPU, and the doctor that prints it;
# the synthesizer's engine and workers are the other half and run without megatron; the settings name a backend's legal
# values
ALLOWED = {
    "megatron_ipt/mcore/device.py",
    "megatron_ipt/mcore/shim.py",
    "megatron_ipt/cli/doctor.py",
    "data_prep/synthesis/devices.py",
    "data_prep/synthesis/engines/transformers.py",
    "megatron_ipt/settings/layout.py",
}


def test_what_a_cpu_never_runs_is_not_compiled_and_the_compiler_not_loaded() -> None:
    """Nor by what every run has: an optimizer, and kernels as they come.  Others come where wanted."""
    code = """
import json, sys, torch
import megatron_ipt.training.run
from megatron.core.fusions import fused_bias_swiglu
from megatron_ipt.mcore import device
from megatron_ipt.mcore.shim import FusedAdam
weight = torch.nn.Parameter(torch.ones(2))
optimizer = FusedAdam([weight])
with device.deterministic(False):
    weight.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
compiler = [name in sys.modules for name in ("torch._dynamo", "torch._inductor")]
asked = [torch.are_deterministic_algorithms_enabled()]
with device.deterministic(True):
    with device.deterministic(False):
        asked += [torch.are_deterministic_algorithms_enabled()]
    asked += [torch.are_deterministic_algorithms_enabled()]
asked += [torch.are_deterministic_algorithms_enabled()]
print(json.dumps([compiler, type(fused_bias_swiglu.swiglu).__name__, torch.compile.__name__, asked]))"""
    assert run_python(code) == [[False, False], "function", "compile", [False, True, True, False]]


def test_nothing_else_branches_on_the_device() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for package in ("data_prep", "megatron_ipt")
        for path in (ROOT / package).rglob("*.py")
        if str(path.relative_to(ROOT)) not in ALLOWED
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if BRANCH.search(line)
    ]
    assert found == []


def test_every_difference_of_the_table_is_legal_for_megatron() -> None:
    names = [row.name for row in device.TABLE if row.config]
    code = f"""
import json
from megatron_ipt.mcore.config import TransformerConfig
print(json.dumps([name for name in {names!r} if name not in TransformerConfig.__dataclass_fields__]))"""
    assert forked_python(code) == []


@pytest.mark.parametrize("variables", [{}, {"LOCAL_WORLD_SIZE": "8"}])
def test_a_rank_without_a_gpu_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Started by torchrun, or by something that does not tell how many it started."""
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(device, "gpu_count", lambda: 4)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    device.set_device(3)
    processes = variables.get("LOCAL_WORLD_SIZE", "6")
    with pytest.raises(
        UserError, match=rf"^train\.nproc_per_node: {processes} processes .* 4 GPU\(s\).*; set it, .* 4 at"
    ):
        device.set_device(5)
    assert taken == [3]
    monkeypatch.setattr(device, "gpu_count", lambda: 0)
    device.set_device(5)
    assert taken == [3, 5]  # which on a CPU is the shim's, and does nothing


def test_more_processes_than_gpus_are_refused_before_any_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By `ipt train` and by `ipt run`; on a CPU any number starts, and torch is not even asked."""
    recipe = load_recipe(ROOT / "examples" / "from_scratch_500m" / "recipe.yaml", [f"output_dir={tmp_path / 'run'}"])
    driver = tmp_path / "version"
    monkeypatch.setattr(processes, "NVIDIA_DRIVER", driver)
    monkeypatch.setattr(device, "gpu_count", lambda: 4)
    train.check_here(recipe)
    driver.touch()
    for start in (lambda: train.launch(recipe, tmp_path, []), lambda: pipeline.check(fed(recipe))):
        with pytest.raises(UserError, match="8 processes on a machine with 4 GPU"):
            start()
    assert not (tmp_path / "run").exists()
    for gpus in (0, 8, 9):
        monkeypatch.setattr(device, "gpu_count", lambda gpus=gpus: gpus)
        train.check_here(recipe)


def fed(recipe: Recipe) -> Recipe:
    """Without the places of data that `ipt run` fills in itself."""
    left = recipe.train.model_copy(update={"blend": None, "held_out": None})
    return recipe.model_copy(update={"train": left})


def test_our_adam_is_torchs_adamw() -> None:
    code = """
import json, torch
from megatron_ipt.mcore.shim import FusedAdam
torch.manual_seed(1)
start = [torch.randn(7, 5), torch.randn(11)]
runs = []
for make in (FusedAdam, torch.optim.AdamW):
    params = [torch.nn.Parameter(x.clone()) for x in start]
    groups = [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "weight_decay": 0.0}]
    optimizer = make(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    runs.append(params)
print(json.dumps([float((a - b).abs().max()) for a, b in zip(*runs)]))"""
    assert max(forked_python(code)) <= 1e-7


def test_auto_takes_transformer_engine_where_it_imports_and_a_gpu_is() -> None:
    """Only the choice: neither the stand-in nor the GPU that is claimed computes anything."""
    code = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
{{stand_in}}
import torch
from megatron_ipt.architecture import Architecture
from megatron_ipt.mcore import config
from megatron_ipt.settings import TrainSettings
model = Architecture(4, 64, 176, 8, 4, 8, 1e-5, 1e4, 512)
train = TrainSettings(global_batch_size=1, seq_length=8, train_iters=1, lr=1e-3)
found = []
for gpu in (True, False):
    torch.cuda.is_available = lambda: gpu
    found.append(config.transformer_config(model, train).transformer_impl)
print(json.dumps(found))"""
    stand_in = "import transformer_engine_stand_in"
    without = "import importlib.util as u; find = u.find_spec; u.find_spec = lambda name, *a: (\n"
    without += "    None if name == 'transformer_engine' else find(name, *a))"
    assert forked_python(code.format(stand_in=stand_in), warm="plain") == ["transformer_engine", "local"]
    assert forked_python(code.format(stand_in=without), warm="plain") == ["local", "local"]


@pytest.mark.parametrize("part", ["transformer_engine", "transformer_engine/pytorch"])
def test_a_broken_transformer_engine_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Of another torch's build, say: megatron-core would end with a traceback on import, whatever the layers."""
    for folder in ("transformer_engine", "transformer_engine/pytorch"):
        (tmp_path / folder).mkdir()
        text = 'raise ImportError("te.so: undefined symbol: _ZN3c10")\n' if folder == part else ""
        (tmp_path / folder / "__init__.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    recipe = ROOT / "examples" / "llama3_70b_domain" / "recipe.yaml"
    done = ipt("plan", recipe, "train.transformer_impl=local", check=False)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: transformer_engine: is installed but does not import (ImportError: te.so: undefined")
    assert "install the build that was made for this torch" in line
