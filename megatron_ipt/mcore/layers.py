"""The layers of a Llama-style decoder, as megatron-core specs: Transformer Engine's or the local ones.

The local spec stands on two parts of ours where megatron-core's own do not run on a CPU: an RMS norm that allows
sequence parallelism, and our attention (attention.py).
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

from megatron_ipt.mcore.attention import DotProductAttention
from megatron_ipt.mcore.low_precision import LINEAR


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


def block_spec(
    config: TransformerConfig,
    vp_stage: int | None,
    *,
    document_masks: bool = False,
    fp8_emulation: str | None = None,
) -> TransformerBlockSubmodules | ModuleSpec:
    """The layers that this pipeline rank (and virtual stage) builds.

    With `document_masks`, or a window, under context parallelism, Transformer Engine's layers have our attention in
    them.  Norms of query and key are those of the other norms.  `fp8_emulation`: of the local layers' products.
    """
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    if config.transformer_impl == "transformer_engine":
        from megatron.core.extensions.transformer_engine import TENorm

        layer = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
        if (document_masks or config.window_size is not None) and config.context_parallel_size > 1:
            layer.submodules.self_attention.submodules.core_attention = DotProductAttention
        return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=TENorm)
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = DotProductAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    if fp8_emulation is not None:
        mlp = layer.submodules.mlp
        mlp = mlp.keywords["submodules"] if hasattr(mlp, "keywords") else mlp.submodules
        attention.linear_qkv, attention.linear_proj = mlp.linear_fc1, mlp.linear_fc2 = LINEAR[fp8_emulation]
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)
