"""Every field of megatron-core's configurations is checked by name and type, with or without Transformer Engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from forks import forked_python

from megatron_ipt.mcore import device

# name: (section of the recipe, its fields, the line that is told)
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "literal": (
        "transformer_config",
        {"fp8": "hybrid", "fp8_recipe": "current"},
        "'current' is not legal; use one of tensorwise, delayed, mxfp8, blockwise, custom",
    ),
    "name": ("transformer_config", {"fp8_recipee": "delayed"}, "did you mean 'fp8_recipe'?"),
    "name_of_the_optimizer": ("optimizer_config", {"adam_beta3": 0.5}, "did you mean 'adam_beta"),
    "name_of_ddp": ("ddp_config", {"overlap_grad_reduces": True}, "did you mean 'overlap_grad_reduce'?"),
    "far": ("transformer_config", {"zzz": 1}, "zzz: TransformerConfig has no such field; the nearest names are "),
    "no_recipe": (
        "transformer_config",
        {"fp8": "hybrid", "fp8_recipe": None},
        "fp8_recipe: null does not go with fp8: hybrid; use one of tensorwise, delayed",
    ),
    "null": ("transformer_config", {"fp8_margin": None}, "fp8_margin: null is not legal; use a whole number"),
    "number": ("transformer_config", {"fp8_margin": "abc"}, "fp8_margin: 'abc' is not legal; use a whole number"),
    "not_whole": ("transformer_config", {"fp8_margin": 0.5}, "fp8_margin: 0.5 is not legal; use a whole number"),
    "bool": (
        "transformer_config",
        {"memory_efficient_layer_norm": 1},
        "memory_efficient_layer_norm: 1 is not legal; use true or false",
    ),
    "real": (
        "transformer_config",
        {"layernorm_zero_centered_gamma": "no"},
        "layernorm_zero_centered_gamma: 'no' is not legal; use true or false",
    ),
    "enum": (
        "transformer_config",
        {"attention_backend": "flassh"},
        "attention_backend: 'flassh' is not legal; use one of flash, fused, unfused, local, auto",
    ),
    "function": (
        "transformer_config",
        {"output_layer_init_method": "normal"},
        "output_layer_init_method: 'normal' is not legal; use null",
    ),
    "list": ("transformer_config", {"cp_comm_type": [1]}, "cp_comm_type: [1] is not legal; use a word or a list"),
    "dtype": (
        "optimizer_config",
        {"exp_avg_dtype": "bf16"},
        "exp_avg_dtype: 'bf16' is not legal; use one of float32, bfloat16",
    ),
    "float": (
        "optimizer_config",
        {"loss_scale_window": "wide"},
        "loss_scale_window: 'wide' is not legal; use a number",
    ),
    "raises": (
        "optimizer_config",
        {"reuse_grad_buf_for_mxfp8_param_ag": True, "overlap_param_gather_with_optimizer_step": True},
        "train.optimizer_config: OptimizerConfig refuses the settings: ",
    ),
    "owned": (
        "transformer_config",
        {"num_layers": 3},
        "num_layers: is set by the trainer; use the key model.num_layers",
    ),
    "context": (
        "transformer_config",
        {"context_parallel_size": 2},
        "context_parallel_size: is set by the trainer; use the key train.context_parallel_size",
    ),
    "of_the_architecture": (
        "transformer_config",
        {"window_size": [7, 0]},
        "window_size: is set by the trainer; use the key model.window_size",
    ),
    "of_a_family": (
        "transformer_config",
        {"qk_layernorm": True},
        "qk_layernorm: is set by the trainer; leave it out: models of family qwen3 have it",
    ),
    "of_the_layout": (
        "transformer_config",
        {"recompute_modules": ["mlp"]},
        "recompute_modules: is set by the trainer; use the key train.recompute_modules",
    ),
    "another_layout": (
        "transformer_config",
        {"account_for_loss_in_pipeline_split": True},
        "is not supported here; use train.pipeline_model_parallel_layout",
    ),
    "an_older_name": (
        "transformer_config",
        {"external_cuda_graph": True},
        "external_cuda_graph: is not supported here; use cuda_graph_impl",
    ),
    "an_older_name_of_parts": (
        "transformer_config",
        {"cuda_graph_impl": "local", "cuda_graph_scope": "attn"},
        "cuda_graph_scope: is not supported here; use cuda_graph_modules",
    ),
    "offloaded": (
        "transformer_config",
        {"cpu_offloading": True},
        "cpu_offloading: is not supported here; use train.recompute_granularity",
    ),
    "fewer_bits": ("transformer_config", {"fp4": "e2m1"}, "fp4: is not supported here; leave it out"),
    "contradiction": (
        "transformer_config",
        {"fp8": "hybrid", "first_last_layers_bf16": True},
        "first_last_layers_bf16: delayed scaling enters FP8 once for all layers; use fp8_recipe: tensorwise",
    ),
    "products": (
        "transformer_config",
        {"fp8": "e4m3", "fp8_recipe": "mxfp8"},
        "fp8: a product of 8 tokens on a rank is no multiple of 32",
    ),
    "set_by_us": (
        "transformer_config",
        {"pipeline_dtype": "bfloat16"},
        "pipeline_dtype: is set by the trainer; leave it out: it has no key",
    ),
}

BUILD = """
import json, sys
from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.mcore import config, dry, parallel
from megatron_ipt.settings import TrainSettings
model = Architecture(4, 64, 176, 8, 4, 8, 1e-5, 1e4, 512)
def settings(**sections):
    return TrainSettings(global_batch_size=1, seq_length=8, train_iters=1, lr=1e-3, **sections)
told = {}
for name, (section, fields, _) in json.loads(CASES).items():
    train = settings(**{section: fields})
    try:
        config.transformer_config(model, train), config.optimizer_config(train), config.ddp_config(train)
    except UserError as error:
        told[name] = str(error)
fp8 = {"fp8": "hybrid", "fp8_recipe": "tensorwise"}
told["legal"] = config.transformer_config(model, settings(transformer_config=fp8)).fp8_recipe
kept = settings(transformer_config={**fp8, "fp8_param": True})
told["follows"] = [config.optimizer_config(kept).fp8_recipe, config.ddp_config(kept).fp8_param_gather]
told["made on the GPU"] = not config.transformer_config(model, kept).use_cpu_initialization
plain = settings()
told["made on the CPU"] = config.transformer_config(model, plain).use_cpu_initialization
told["without"] = [config.optimizer_config(plain).fp8_recipe, config.ddp_config(plain).fp8_param_gather]
more = {"attention_backend": "flash", "fp8_margin": 1}
built = config.transformer_config(model, settings(transformer_config=more))
told["member"] = [type(built.attention_backend).__name__, built.attention_backend.name, built.fp8_margin]
built = config.optimizer_config(settings(optimizer_config={"main_grads_dtype": "float32"}))
told["dtype_member"] = str(built.main_grads_dtype)
for impl in ("local", "transformer_engine"):
    try:
        train = settings(transformer_config=fp8, transformer_impl=impl)
        config.check_runs_here(config.transformer_config(model, train), train)
    except UserError as error:
        told[f"fp8 with {impl}"] = str(error)
try:
    train = settings(fp8_emulation="hybrid", transformer_impl="transformer_engine")
    config.check_runs_here(config.transformer_config(model, train), train)
except UserError as error:
    told["emulated"] = str(error)
try:
    train = settings(recompute_granularity="selective", recompute_modules=["layernorm"], transformer_impl="local")
    config.check_runs_here(config.transformer_config(model, train), train)
except UserError as error:
    told["norms recomputed"] = str(error)
graphed = settings(transformer_config={"cuda_graph_impl": "local"}, transformer_impl="local")
with dry.fake_group(0, 1), parallel.model_parallel(graphed, with_gloo=False):
    try:
        config.check_runs_here(config.transformer_config(model, graphed), graphed)
        told["graphs without a GPU"] = ""
    except UserError as error:
        told["graphs without a GPU"] = str(error)
short = settings(optimizer_config={"use_precision_aware_optimizer": True, "exp_avg_dtype": "bfloat16"})
built = config.optimizer_config(short)
told["short states"] = [built.use_precision_aware_optimizer, str(built.exp_avg_dtype), str(built.exp_avg_sq_dtype)]
summed = settings(optimizer_config={"use_precision_aware_optimizer": True, "main_grads_dtype": "bfloat16"})
told["gradients"] = [config.ddp_config(train).grad_reduce_in_fp32 for train in (short, summed)]
try:
    config.check_runs_here(config.transformer_config(model, short), short)
except UserError as error:
    told["short states here"] = str(error)
try:
    lacking = settings(optimizer_config={"use_precision_aware_optimizer": True, "exp_avg_dtype": "float64"})
    config.optimizer_config(lacking)
except UserError as error:
    told["no such states"] = str(error)
print(json.dumps(told))"""


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What each configuration was told, in one process that has megatron-core."""
    found = forked_python(f"CASES = {json.dumps(REFUSED)!r}\n{BUILD}")
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_field_is_a_line_with_what_is_legal(told: dict[str, Any], name: str) -> None:
    assert REFUSED[name][2] in told[name]
    assert len(told[name]) < 400


def test_legal_values_become_members_of_their_types(told: dict[str, Any]) -> None:
    assert told["legal"] == "tensorwise"
    assert told["member"] == ["AttnBackend", "flash", 1]
    assert told["dtype_member"] == "torch.float32"


def test_what_follows_from_fp8_reaches_the_other_configurations(told: dict[str, Any]) -> None:
    assert (told["follows"], told["without"]) == (["tensorwise", True], [None, False])
    assert told["made on the GPU"] and told["made on the CPU"]


def test_graphs_without_a_gpu_are_a_line_of_each_rank(told: dict[str, Any]) -> None:
    """Reached through the groups and generators of a run, which torch has none of here that a graph could use."""
    if not device.has_gpu():
        assert told["graphs without a GPU"].endswith("cuda_graph_impl: there is no GPU here; leave it out")


def test_fp8_wants_transformer_engine_and_a_gpu(told: dict[str, Any]) -> None:
    assert "hybrid needs Transformer Engine's layers" in told["fp8 with local"]
    if not device.has_transformer_engine():
        assert "here is no transformer_engine, or no GPU" in told["fp8 with transformer_engine"]


def test_fp8_is_emulated_in_the_local_layers_alone(told: dict[str, Any]) -> None:
    assert told["emulated"].startswith("train.fp8_emulation: rounds in the local layers")


def test_norms_are_not_computed_again_without_transformer_engine(told: dict[str, Any]) -> None:
    """megatron-core 0.19.2 ends in a NameError there, in the first forward pass."""
    wanted = "recompute_modules: layernorm needs Transformer Engine's layers, and these are the local ones"
    assert wanted in told["norms recomputed"]


def test_short_states_are_planned_without_transformer_engine_and_run_with_it_alone(told: dict[str, Any]) -> None:
    assert told["short states"] == [True, "torch.bfloat16", "torch.float32"]
    assert told["gradients"] == [True, False]
    assert "the update is Transformer Engine's FusedAdam's, and there is none here" in told["short states here"]
    assert "FusedAdam has no float64 for it; use float32, float16, bfloat16, uint8" in told["no such states"]
