"""megatron-core's configuration objects, made from a recipe and checked field by field.

Without Transformer Engine nothing in megatron-core checks its fields (`fp8_recipe: current` and `fp8_margin: abc` are
accepted), so each that a recipe sets is checked here against its type hint.
"""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

import os
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer.transformer_config import TransformerConfig
from pydantic import BaseModel

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.mcore import device, fp8, graph_rules, kernels, optimizer_states, user_buffers
from megatron_ipt.mcore.contradiction import Contradiction, refuse
from megatron_ipt.mcore.fields import as_hinted
from megatron_ipt.recipe import nearest_few
from megatron_ipt.settings import ModelSettings, TrainSettings

_SECTIONS: dict[str, type[BaseModel]] = {"train": TrainSettings, "model": ModelSettings}
BUCKET_SIZE = 40_000_000
"""Parameters of a bucket that is reduced while the backward pass runs: megatron-core's own up to 40 replicas."""

UNSUPPORTED = {
    **dict.fromkeys(("expert_model_parallel_size", "num_moe_experts"), "leave it out"),
    **dict.fromkeys(("fp4", "fp4_param", "optimizer_cuda_graph"), "leave it out"),
    **dict.fromkeys(("cpu_offloading", "fine_grained_activation_offloading"), "use train.recompute_granularity"),
    **dict.fromkeys(("enable_cuda_graph", "external_cuda_graph"), "use cuda_graph_impl"),
    "cuda_graph_scope": "use cuda_graph_modules",
    **dict.fromkeys(("window_attn_skip_freq", "qk_l2_norm"), "leave it out"),
    "account_for_embedding_in_pipeline_split": "use train.pipeline_model_parallel_layout",
    "account_for_loss_in_pipeline_split": "use train.pipeline_model_parallel_layout",
}
_UNEVEN = (
    "pipeline_model_parallel_layout",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
)
_RECOMPUTED = ("recompute_granularity", "recompute_method", "recompute_num_layers", "recompute_modules")
OF_A_FAMILY = {"add_qkv_bias": "qwen2", "qk_layernorm": "qwen3"}


def checked[Config: (TransformerConfig, OptimizerConfig, DistributedDataParallelConfig)](
    config: type[Config], section: str, values: Mapping[str, Any]
) -> Config:
    """`config(**values)`; UserError for a field it does not have, a value its hint forbids, or its own refusal."""
    return _made(config, section, _hinted(config, section, values))


def _hinted(config: type[Any], section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(config)
    found = {}
    for name, value in values.items():
        if name not in hints:
            problem = f"{config.__name__} has no such field"
            raise UserError(f"{section}.{name}", problem, nearest_few(name, hints))
        try:
            found[name] = as_hinted(hints[name], value)
        except ValueError as error:
            raise UserError(f"{section}.{name}", *error.args) from error
    for name in ("fp8", "fp4"):
        if found.get(name) and found.get(f"{name}_recipe", "default") is None:
            legal = ", ".join(_literals(hints[f"{name}_recipe"]))
            raise UserError(
                f"{section}.{name}_recipe", f"null does not go with {name}: {found[name]}", f"use one of {legal}"
            )
    return found


def _made[Config](config: type[Config], section: str, values: Mapping[str, Any]) -> Config:
    try:
        return config(**values)
    except (ValueError, AssertionError, TypeError, RuntimeError, ImportError) as error:
        raise UserError(section, f"{config.__name__} refuses the settings: {error}", "change them") from error


def _free(section: str, extra: Mapping[str, Any], owned: Mapping[str, Any]) -> Mapping[str, Any]:
    """`extra`; UserError for a field that the trainer sets itself, or that is not supported."""
    for name in extra:
        if name in owned:
            keys = [f"{part}.{name}" for part, model in _SECTIONS.items() if name in model.model_fields]
            mend = f"use the key {keys[0]}" if keys else "leave it out: it has no key, it follows from the others"
            if name in OF_A_FAMILY:
                mend = f"leave it out: models of family {OF_A_FAMILY[name]} have it (model.load_hf, or model.family)"
            raise UserError(f"{section}.{name}", "is set by the trainer", mend)
        if name in UNSUPPORTED:
            raise UserError(f"{section}.{name}", "is not supported here", UNSUPPORTED[name])
    return extra


def _literals(hint: Any) -> tuple[Any, ...]:
    """The values a type hint allows, if it is a Literal or an Optional of one; else nothing."""
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    return tuple(value for part in typing.get_args(hint) for value in _literals(part))


def transformer_config(architecture: Architecture, train: TrainSettings) -> TransformerConfig:
    """The model's configuration: the architecture, the layout, the device's part, then the recipe's own fields."""
    dtype = torch.bfloat16 if train.bf16 else torch.float32
    virtual = train.virtual_pipeline_model_parallel_size
    names = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels")
    values: dict[str, Any] = {
        **{name: getattr(architecture, name) for name in names},
        "layernorm_epsilon": architecture.layernorm_epsilon,
        "add_qkv_bias": architecture.add_qkv_bias,
        "qk_layernorm": architecture.qk_layernorm,
        "window_size": architecture.window_size,
        "init_method_std": architecture.init_method_std,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "add_bias_linear": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "bf16": train.bf16,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "tensor_model_parallel_size": train.tensor_model_parallel_size,
        "pipeline_model_parallel_size": train.pipeline_model_parallel_size,
        "context_parallel_size": train.context_parallel_size,
        "virtual_pipeline_model_parallel_size": virtual,
        **{name: getattr(train, name) for name in _UNEVEN},
        **{name: getattr(train, name) for name in _RECOMPUTED},
        "sequence_parallel": train.sequence_parallel,
        "calculate_per_token_loss": True,
        "deterministic_mode": train.deterministic_mode,
        # the interleaved schedule is silently wrong with batched point-to-point messages (0.19, gloo)
        "overlap_p2p_comm": virtual is not None,
        "batch_p2p_comm": virtual is None,
        "transformer_impl": device.transformer_impl(train.transformer_impl),
    }
    own = {**device.config_fields(values["transformer_impl"]), **fp8.transformer_fields(train.transformer_config)}
    free = {**own, **_free("train.transformer_config", train.transformer_config, values)}
    found = _hinted(TransformerConfig, "train.transformer_config", {**values, **free})
    refuse(_contradictions(train, architecture))
    fp8.check_products(train.transformer_config, train, architecture)
    return _made(TransformerConfig, "train.transformer_config", found)


def _contradictions(train: TrainSettings, architecture: Architecture) -> Iterator[Contradiction]:
    """Settings that are legal one by one, and cannot be together."""
    yield from fp8.contradictions(train, architecture.num_layers // train.pipeline_model_parallel_size)
    yield from user_buffers.contradictions(train)
    yield from graph_rules.contradictions(train)
    yield from kernels.contradictions(train)


def check_runs_here(config: TransformerConfig, train: TrainSettings) -> None:
    """UserError for a configuration that is legal but that this machine cannot compute."""
    graph_rules.check_environment(train, os.environ)
    kernels.check_environment(train, os.environ)
    if config.transformer_impl != "transformer_engine":
        refuse(
            kernels.lacking(config, train, captures=device.pick("graphs"), has_engine=device.has_transformer_engine())
        )
        return
    if train.fp8_emulation is not None:
        raise UserError(
            "train.fp8_emulation",
            "rounds in the local layers, and these are Transformer Engine's",
            "use train.transformer_config={fp8: hybrid}, or train.transformer_impl: local",
        )
    if not device.has_transformer_engine():
        raise UserError(
            "train.transformer_impl",
            "there is no transformer_engine, or no GPU, here",
            "set it to local, or to auto",
        )
    fp8.check_card(train.transformer_config, *device.card())


def optimizer_config(train: TrainSettings) -> OptimizerConfig:
    """Adam with decoupled weight decay; masters and moments in fp32."""
    values: dict[str, Any] = {
        "optimizer": "adam",
        "lr": train.lr,
        "min_lr": train.min_lr,
        "weight_decay": train.weight_decay,
        "adam_beta1": train.adam_beta1,
        "adam_beta2": train.adam_beta2,
        "adam_eps": train.adam_eps,
        "clip_grad": train.clip_grad,
        "bf16": train.bf16,
        "params_dtype": torch.bfloat16 if train.bf16 else torch.float32,
        "use_distributed_optimizer": train.use_distributed_optimizer,
        "overlap_param_gather": train.overlap_param_gather,
        **fp8.optimizer_fields(train.transformer_config),
    }
    free = _free("train.optimizer_config", train.optimizer_config, values)
    found = _hinted(OptimizerConfig, "train.optimizer_config", {**values, **free})
    refuse(optimizer_states.contradictions(train))
    if not optimizer_states.is_wanted(train) or device.has_transformer_engine():
        return _made(OptimizerConfig, "train.optimizer_config", found)
    # megatron-core looks for Transformer Engine's optimizer as it makes this; to plan with it, none is needed
    states = {name: found.pop(name) for name in optimizer_states.FIELDS if name in found}
    config = _made(OptimizerConfig, "train.optimizer_config", found)
    for name, value in states.items():
        setattr(config, name, value)
    return config


def ddp_config(train: TrainSettings) -> DistributedDataParallelConfig:
    """Gradients are summed in fp32, or in what the optimizer takes them in."""
    values: dict[str, Any] = {
        "grad_reduce_in_fp32": optimizer_states.gradient_bytes(train) == 4,
        "overlap_grad_reduce": train.overlap_grad_reduce,
        "overlap_param_gather": train.overlap_param_gather,
        "use_distributed_optimizer": train.use_distributed_optimizer,
        **fp8.ddp_fields(train.transformer_config),
    }
    free = _free("train.ddp_config", train.ddp_config, values)
    # megatron-core's default grows with DP above 40, and a dp_reshardable state loads with the same buckets only
    pinned = {} if train.dist_ckpt_optim_fully_reshardable or "num_buckets" in free else {"bucket_size": BUCKET_SIZE}
    return checked(DistributedDataParallelConfig, "train.ddp_config", {**values, **pinned, **free})
