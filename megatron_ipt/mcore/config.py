"""megatron-core's configuration objects, made from a recipe and checked field by field.

Without Transformer Engine nothing in megatron-core checks the Literal-typed fields
(`fp8_recipe: current` is accepted), so every one that a recipe sets is checked here.
"""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

import typing
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer.transformer_config import TransformerConfig

from data_prep.errors import UserError, nearest
from megatron_ipt.architecture import Architecture
from megatron_ipt.mcore import device
from megatron_ipt.recipe import TrainSettings

UNSUPPORTED = ("context_parallel_size", "expert_model_parallel_size", "num_moe_experts")


def checked[Config: (TransformerConfig, OptimizerConfig, DistributedDataParallelConfig)](
    config: type[Config], section: str, values: Mapping[str, Any]
) -> Config:
    """`config(**values)`; UserError for a field it does not have or a value outside the field's Literal."""
    hints = typing.get_type_hints(config)
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"{section}.{name}", f"{config.__name__} has no such field", nearest(name, hints))
        legal = _literals(hints[name])
        if legal and value is not None and value not in legal:
            raise UserError(f"{section}.{name}", f"{value!r} is not legal", f"use one of {', '.join(map(str, legal))}")
    try:
        return config(**values)
    except (ValueError, AssertionError, TypeError) as error:
        raise UserError(section, f"{config.__name__} refuses the settings: {error}", "change them") from error


def _free(section: str, extra: Mapping[str, Any], owned: Mapping[str, Any]) -> Mapping[str, Any]:
    """`extra`; UserError for a field that the recipe has a key of its own for, or that is not supported."""
    for name in extra:
        if name in owned:
            raise UserError(f"{section}.{name}", "is set elsewhere", f"use the key of `train` or `model` for {name}")
        if name in UNSUPPORTED:
            raise UserError(f"{section}.{name}", "is not supported by our layers or batches", "leave it out")
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
        "virtual_pipeline_model_parallel_size": virtual,
        "sequence_parallel": train.sequence_parallel,
        "calculate_per_token_loss": True,
        # the interleaved schedule is silently wrong with batched point-to-point messages (0.19, gloo)
        "overlap_p2p_comm": virtual is not None,
        "batch_p2p_comm": virtual is None,
        "transformer_impl": device.transformer_impl(train.transformer_impl),
    }
    own = device.config_fields(values["transformer_impl"])
    free = {**own, **_free("train.transformer_config", train.transformer_config, values)}
    return checked(TransformerConfig, "train.transformer_config", {**values, **free})


def check_runs_here(config: TransformerConfig) -> None:
    """UserError for a configuration that is legal but that this machine cannot compute."""
    if config.transformer_impl == "transformer_engine":
        if not device.has_transformer_engine():
            raise UserError(
                "train.transformer_impl",
                "there is no transformer_engine, or no GPU, here",
                "set it to local, or to auto",
            )
        return
    for name in ("fp8", "fp4"):
        if getattr(config, name):
            raise UserError(
                f"train.transformer_config.{name}",
                f"{getattr(config, name)} needs Transformer Engine's layers, and these are the local ones",
                "train where Transformer Engine and a GPU are, or leave it out",
            )


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
    }
    free = _free("train.optimizer_config", train.optimizer_config, values)
    return checked(OptimizerConfig, "train.optimizer_config", {**values, **free})


def ddp_config(train: TrainSettings) -> DistributedDataParallelConfig:
    """Gradients are summed in fp32."""
    values: dict[str, Any] = {
        "grad_reduce_in_fp32": True,
        "overlap_grad_reduce": train.overlap_grad_reduce,
        "overlap_param_gather": train.overlap_param_gather,
        "use_distributed_optimizer": train.use_distributed_optimizer,
    }
    free = _free("train.ddp_config", train.ddp_config, values)
    return checked(DistributedDataParallelConfig, "train.ddp_config", {**values, **free})
