"""The layers of a Llama-style decoder, as megatron-core specs: Transformer Engine's or the local ones.

The local spec stands on three parts of ours where megatron-core's own do not run on a CPU: an RMS norm
that allows sequence parallelism, and attention through torch's scaled_dot_product_attention.
"""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from data_prep.errors import UserError


class RMSNorm(torch.nn.Module):
    """RMS norm over the last dimension; its weight says that it is sequence parallel, so that gradients are summed."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        device = torch.get_default_device()  # named, since the CPU shim wraps torch.ones
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class DotProductAttention(torch.nn.Module):
    """Causal attention through torch's kernel.  Shapes are Megatron's: [sequence, batch, heads, head width]."""

    def __init__(self, config: TransformerConfig, *_: Any, softmax_scale: float | None = None, **__: Any) -> None:
        super().__init__()
        if config.context_parallel_size > 1:
            raise UserError(
                "train.context_parallel_size", "the local layers have no context parallelism", "set it to 1"
            )
        self.scale = softmax_scale

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **_: Any
    ) -> torch.Tensor:
        length, batch, heads, width = query.shape
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        grouped = key.shape[1] != heads
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scale, enable_gqa=grouped)
        return out.permute(2, 0, 1, 3).reshape(length, batch, heads * width)

    def sharded_state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}


def block_spec(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules | ModuleSpec:
    """The layers that this pipeline rank (and virtual stage) builds."""
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    if config.transformer_impl == "transformer_engine":
        from megatron.core.extensions.transformer_engine import TENorm

        layer = get_gpt_layer_with_transformer_engine_spec()
        return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=TENorm)
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
    layer.submodules.self_attention.submodules.core_attention = DotProductAttention
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)
