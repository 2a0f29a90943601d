"""One table of device differences, one Adam for both, and configurations checked without the hardware."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment, ipt

from megatron_ipt.mcore import device

ROOT = Path(__file__).parents[2]
BRANCH = re.compile(r"cuda\.is_available|has_gpu|\.device\.type|\.is_cuda|device_count|['\"]cuda['\"]|['\"]nccl['\"]")
# where the question may be asked: the table, the shim that stands for a GPU, and the doctor that prints it;
# the synthesizer's engine is the other half and runs without megatron
ALLOWED = {
    "megatron_ipt/mcore/device.py",
    "megatron_ipt/mcore/shim.py",
    "megatron_ipt/cli/doctor.py",
    "data_prep/synthesis/engines/transformers.py",
}


def run_python(code: str) -> object:
    """Run code in a process of its own (megatron's shim must not reach this one); it prints JSON last."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


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
    assert run_python(code) == []


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
    assert max(run_python(code)) <= 1e-7


def test_configuration_fields_are_checked_without_transformer_engine() -> None:
    code = """
import json
from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.mcore import config
from megatron_ipt.recipe import TrainSettings
model = Architecture(4, 64, 176, 8, 4, 8, 1e-5, 1e4, 512)
told = {}
cases = {
    "literal": ("transformer_config", {"fp8": "hybrid", "fp8_recipe": "current"}),
    "name": ("transformer_config", {"fp8_recipee": "delayed"}),
    "optimizer": ("optimizer_config", {"adam_beta3": 0.5}),
    "ddp": ("ddp_config", {"overlap_grad_reduces": True}),
    "far": ("transformer_config", {"zzz": 1}),
    "no_recipe": ("transformer_config", {"fp8": "hybrid", "fp8_recipe": None}),
    "null": ("transformer_config", {"fp8_margin": None}),
    "number": ("transformer_config", {"fp8_margin": "abc"}),
    "not_whole": ("transformer_config", {"fp8_margin": 0.5}),
    "bool": ("transformer_config", {"memory_efficient_layer_norm": 1}),
    "real": ("transformer_config", {"layernorm_zero_centered_gamma": "no"}),
    "enum": ("transformer_config", {"attention_backend": "flassh"}),
    "function": ("transformer_config", {"output_layer_init_method": "normal"}),
    "list": ("transformer_config", {"recompute_modules": [1]}),
    "dtype": ("optimizer_config", {"exp_avg_dtype": "bf16"}),
    "float": ("optimizer_config", {"loss_scale_window": "wide"}),
    "raises": ("optimizer_config", {"use_precision_aware_optimizer": True}),
    "owned": ("transformer_config", {"num_layers": 3}),
    "set_by_us": ("transformer_config", {"pipeline_dtype": "bfloat16"}),
}
for name, (section, extra) in cases.items():
    train = TrainSettings(global_batch_size=1, seq_length=8, train_iters=1, lr=1e-3, **{section: extra})
    try:
        config.transformer_config(model, train), config.optimizer_config(train), config.ddp_config(train)
    except UserError as error:
        told[name] = str(error)
train = TrainSettings(global_batch_size=1, seq_length=8, train_iters=1, lr=1e-3,
                      transformer_config={"fp8": "hybrid", "fp8_recipe": "tensorwise"})
told["legal"] = config.transformer_config(model, train).fp8_recipe
more = {"attention_backend": "flash", "fp8_margin": 1, "recompute_modules": ["core_attn"]}
built = config.transformer_config(model, train.model_copy(update={"transformer_config": more}))
told["member"] = [type(built.attention_backend).__name__, built.attention_backend.name, built.fp8_margin]
built = config.optimizer_config(train.model_copy(update={"optimizer_config": {"main_grads_dtype": "float32"}}))
told["dtype_member"] = str(built.main_grads_dtype)
for name, impl in (("local", "local"), ("missing", "transformer_engine")):
    try:
        config.check_runs_here(config.transformer_config(model, train.model_copy(update={"transformer_impl": impl})))
    except UserError as error:
        told[name] = str(error)
print(json.dumps(told))"""
    told = run_python(code)
    assert isinstance(told, dict)
    assert "'current' is not legal; use one of tensorwise, delayed, mxfp8, blockwise, custom" in told["literal"]
    assert "did you mean 'fp8_recipe'?" in told["name"]
    assert "did you mean 'adam_beta" in told["optimizer"]
    assert "did you mean 'overlap_grad_reduce'?" in told["ddp"]
    assert told["legal"] == "tensorwise"
    assert told["member"] == ["AttnBackend", "flash", 1]
    assert told["dtype_member"] == "torch.float32"
    lines = {
        "no_recipe": "fp8_recipe: null does not go with fp8: hybrid; use one of tensorwise, delayed",
        "null": "fp8_margin: null is not legal; use a whole number",
        "number": "fp8_margin: 'abc' is not legal; use a whole number",
        "not_whole": "fp8_margin: 0.5 is not legal; use a whole number",
        "bool": "memory_efficient_layer_norm: 1 is not legal; use true or false",
        "real": "layernorm_zero_centered_gamma: 'no' is not legal; use true or false",
        "enum": "attention_backend: 'flassh' is not legal; use one of flash, fused, unfused, local, auto",
        "function": "output_layer_init_method: 'normal' is not legal; use null",
        "list": "recompute_modules: [1] is not legal; use a list",
        "dtype": "exp_avg_dtype: 'bf16' is not legal; use one of float32, bfloat16",
        "float": "loss_scale_window: 'wide' is not legal; use a number",
        "raises": "train.optimizer_config: OptimizerConfig refuses the settings: ",
        "owned": "num_layers: is set by the trainer; use the key model.num_layers",
        "set_by_us": "pipeline_dtype: is set by the trainer; leave it out: it has no key",
        "far": "zzz: TransformerConfig has no such field; the nearest names are ",
    }
    for name, line in lines.items():
        assert line in told[name], (name, told[name])
    assert len(told["far"]) < 300
    assert "hybrid needs Transformer Engine's layers" in told["local"]
    if not device.has_transformer_engine():
        assert "here is no transformer_engine, or no GPU" in told["missing"]


def test_auto_takes_transformer_engine_where_it_imports_and_a_gpu_is() -> None:
    """Only the choice: neither the stand-in nor the GPU that is claimed computes anything."""
    code = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
{{stand_in}}
import torch
from megatron_ipt.architecture import Architecture
from megatron_ipt.mcore import config
from megatron_ipt.recipe import TrainSettings
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
    assert run_python(code.format(stand_in=stand_in)) == ["transformer_engine", "local"]
    assert run_python(code.format(stand_in=without)) == ["local", "local"]


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
