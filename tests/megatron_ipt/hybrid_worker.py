"""One process that tells, as JSON, how far the logits of a HybridModel are from those of our GPTModel, weights alike.

What docs/decisions/0001 calls missing in megatron-core 0.19 is put in its place here: specs of local layers, and a
local final norm for Transformer Engine's, which HybridStack names itself.
"""

from __future__ import annotations

import dataclasses
import json

import torch

from megatron_ipt.mcore import config as configs
from megatron_ipt.mcore import layers, parallel
from megatron_ipt.mcore import model as models

# isort: split
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.hybrid import hybrid_block
from megatron.core.models.hybrid.hybrid_block import HybridStack, HybridStackSubmodules
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.ssm.mlp_layer import MLPLayer
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_ipt.architecture import Architecture
from megatron_ipt.settings import TrainSettings

LAYERS, VOCABULARY, LENGTH = 3, 512, 64
MODEL = Architecture(LAYERS, 64, 176, 8, 4, 8, 1e-5, 1e4, VOCABULARY, init_method_std=0.1)


def hybrid(config: TransformerConfig) -> torch.nn.Module:
    """The same layers, attention and feed-forward counted as one each: `*-` a layer."""
    parts = layers.block_spec(config, None).layer_specs[0].submodules
    attention = TransformerLayerSubmodules(
        input_layernorm=parts.input_layernorm,
        self_attention=parts.self_attention,
        self_attn_bda=get_bias_dropout_add,
    )
    mlp = TransformerLayerSubmodules(
        pre_mlp_layernorm=parts.pre_mlp_layernorm, mlp=parts.mlp, mlp_bda=get_bias_dropout_add
    )
    stack = HybridStackSubmodules(
        attention_layer=ModuleSpec(module=TransformerLayer, submodules=attention),
        mlp_layer=ModuleSpec(module=MLPLayer, submodules=mlp),
    )
    hybrid_block.TENorm = layers.RMSNorm
    return HybridModel(
        config=dataclasses.replace(config, num_layers=2 * LAYERS),
        hybrid_stack_spec=ModuleSpec(module=HybridStack, submodules=stack),
        vocab_size=VOCABULARY,
        max_sequence_length=LENGTH,
        hybrid_layer_pattern="*-" * LAYERS,
        position_embedding_type="rope",
        rotary_base=MODEL.rotary_base,
    )


def name_in_gpt(name: str) -> str:
    if ".layers." not in name:
        return name.replace("final_norm", "final_layernorm")
    _, _, layer, part = name.split(".", 3)
    return f"decoder.layers.{int(layer) // 2}.{part}"


def main() -> None:
    train = TrainSettings(global_batch_size=1, seq_length=LENGTH, train_iters=1, lr=1e-3, bf16=False)
    with parallel.distributed(), parallel.model_parallel(train):
        config = configs.transformer_config(MODEL, train)
        (ours,) = models.build(MODEL, config, train, VOCABULARY)
        theirs = hybrid(config)
        weights = dict(ours.named_parameters())
        with torch.no_grad():
            taken = [name_in_gpt(name) for name, _ in theirs.named_parameters()]
            for (_, weight), name in zip(theirs.named_parameters(), taken, strict=True):
                weight.copy_(weights[name])
            tokens, positions = torch.randint(0, VOCABULARY, (1, LENGTH)), torch.arange(LENGTH)[None]
            a, b = (model(tokens, positions, None) for model in (ours, theirs))
    told = {"shape": list(a.shape), "spread": float(a.std()), "difference": float((a - b).abs().max())}
    print(json.dumps({**told, "all_weights": sorted(taken) == sorted(weights)}))


if __name__ == "__main__":
    main()
