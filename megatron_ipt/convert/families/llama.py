"""Llama 2, Llama 3 and SmolLM2: `model_type: llama`, without rope scaling or biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.convert.families.weights import Kind, Weights


def architecture(config: dict[str, Any], path: Path) -> Architecture:
    """Read a config.json of transformers 4 (`rope_theta`) or 5 (`rope_parameters.rope_theta`)."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UserError(path, f"rope scaling {rope} is not supported", "use a model without it")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise UserError(path, f"{key} is not supported", "use a model without biases")
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(path, f"hidden_act '{config['hidden_act']}' is not supported", "use a model with silu")
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return Architecture(
            num_layers=config["num_hidden_layers"],
            hidden_size=hidden,
            ffn_hidden_size=config["intermediate_size"],
            num_attention_heads=heads,
            num_query_groups=config.get("num_key_value_heads") or heads,
            kv_channels=config.get("head_dim") or hidden // heads,
            layernorm_epsilon=config["rms_norm_eps"],
            rotary_base=config.get("rope_theta") or rope.get("rope_theta", 10000.0),
            vocab_size=config["vocab_size"],
            share_embeddings_and_output_weights=config.get("tie_word_embeddings", False),
            init_method_std=config.get("initializer_range", 0.02),
        )
    except KeyError as error:
        raise UserError(path, f"key {error} is missing", "copy the directory again") from error


def config_json(architecture: Architecture, max_position_embeddings: int) -> dict[str, Any]:
    """The config.json of a model that was trained from scratch."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": architecture.num_layers,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.ffn_hidden_size,
        "num_attention_heads": architecture.num_attention_heads,
        "num_key_value_heads": architecture.num_query_groups,
        "head_dim": architecture.kv_channels,
        "rms_norm_eps": architecture.layernorm_epsilon,
        "rope_theta": architecture.rotary_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": architecture.rotary_base},
        "vocab_size": architecture.vocab_size,
        "tie_word_embeddings": architecture.share_embeddings_and_output_weights,
        "initializer_range": architecture.init_method_std,
        "max_position_embeddings": max_position_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }


def weights_of(parameter: str, architecture: Architecture) -> Weights:
    """The Hugging Face tensors behind a Megatron parameter (global layer numbers; local or TE layer names)."""
    if parameter == "embedding.word_embeddings.weight":
        return Weights("vocabulary", ("model.embed_tokens.weight",))
    if parameter == "output_layer.weight":
        tied = architecture.share_embeddings_and_output_weights
        return Weights("vocabulary", ("model.embed_tokens.weight" if tied else "lm_head.weight",))
    if parameter == "decoder.final_layernorm.weight":
        return Weights("replicated", ("model.norm.weight",))
    _, _, layer, part = parameter.split(".", 3)
    kind, names = _LAYER[part]
    return Weights(kind, tuple(f"model.layers.{layer}.{name}.weight" for name in names))


_LAYER: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "input_layernorm.weight": ("replicated", ("input_layernorm",)),
    "self_attention.linear_qkv.layer_norm_weight": ("replicated", ("input_layernorm",)),
    "self_attention.linear_qkv.weight": ("qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    "self_attention.linear_proj.weight": ("columns", ("self_attn.o_proj",)),
    "pre_mlp_layernorm.weight": ("replicated", ("post_attention_layernorm",)),
    "mlp.linear_fc1.layer_norm_weight": ("replicated", ("post_attention_layernorm",)),
    "mlp.linear_fc1.weight": ("gate_up", ("mlp.gate_proj", "mlp.up_proj")),
    "mlp.linear_fc2.weight": ("columns", ("mlp.down_proj",)),
}
