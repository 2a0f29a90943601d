"""What the families share: a config.json's numbers, and the tensors of a Llama-style decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from megatron_ipt.architecture import FAMILIES, Architecture, RopeScaling
from megatron_ipt.convert.families.weights import Kind, Weights


def read_numbers(
    family: str, config: Mapping[str, Any], path: Path, *, window_size: tuple[int, int] | None = None
) -> Architecture:
    """The architecture in a config.json of transformers 4 (`rope_theta`) or 5 (`rope_parameters.rope_theta`)."""
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(path, f"hidden_act '{config['hidden_act']}' is not supported", "use a model with silu")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
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
            family=family,
            window_size=window_size,
            rope_scaling=_rope_scaling(rope, config, path),
            **FAMILIES[family],
        )
    except KeyError as error:
        raise UserError(path, f"key {error} is missing", "copy the directory again") from error


def _rope_scaling(rope: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> RopeScaling | None:
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError(path, "partial_rotary_factor: part of a head only is rotated", "use a model without it")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise UserError(path, f"rope scaling '{kind}' is not supported", "use a model with llama3's, or without any")
    original = rope.get("original_max_position_embeddings", config.get("max_position_embeddings", 8192))
    return RopeScaling(rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], original)


def refuse(config: Mapping[str, Any], path: Path, **reasons: str) -> None:
    """UserError for the first key of `reasons` that the config.json has switched on."""
    if "sliding_attention" in (config.get("layer_types") or ()):
        raise UserError(path, f"layer_types is not supported: {WINDOW_OF_SOME_LAYERS}", "use a model without it")
    for key, reason in reasons.items():
        if config.get(key):
            raise UserError(path, f"{key} is not supported: {reason}", "use a model without it")


WINDOW_OF_SOME_LAYERS = "some layers have a window (from max_window_layers on), and ours are all alike"
BIAS_OF_O_PROJ = "it puts a bias on o_proj too"


def numbers(architecture: Architecture, class_name: str, max_position_embeddings: int) -> dict[str, Any]:
    """The config.json of a model that was trained from scratch, as far as the families agree."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": architecture.rotary_base}
    if architecture.rope_scaling is not None:
        rope |= {"rope_type": "llama3", **asdict(architecture.rope_scaling)}
    return {
        "architectures": [class_name],
        "model_type": architecture.family,
        "num_hidden_layers": architecture.num_layers,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.ffn_hidden_size,
        "num_attention_heads": architecture.num_attention_heads,
        "num_key_value_heads": architecture.num_query_groups,
        "head_dim": architecture.kv_channels,
        "rms_norm_eps": architecture.layernorm_epsilon,
        "rope_theta": architecture.rotary_base,
        "rope_parameters": rope,
        "vocab_size": architecture.vocab_size,
        "tie_word_embeddings": architecture.share_embeddings_and_output_weights,
        "initializer_range": architecture.init_method_std,
        "max_position_embeddings": max_position_embeddings,
        "hidden_act": "silu",
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
    suffix = part.rsplit(".", 1)[1] if part.endswith("bias") else "weight"
    return Weights(kind, tuple(f"model.layers.{layer}.{name}.{suffix}" for name in names))


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_LAYER: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "input_layernorm.weight": ("replicated", ("input_layernorm",)),
    "self_attention.linear_qkv.layer_norm_weight": ("replicated", ("input_layernorm",)),
    "self_attention.linear_qkv.weight": ("qkv", _QKV),
    "self_attention.linear_qkv.bias": ("qkv", _QKV),
    "self_attention.q_layernorm.weight": ("replicated", ("self_attn.q_norm",)),
    "self_attention.k_layernorm.weight": ("replicated", ("self_attn.k_norm",)),
    "self_attention.linear_proj.weight": ("columns", ("self_attn.o_proj",)),
    "pre_mlp_layernorm.weight": ("replicated", ("post_attention_layernorm",)),
    "mlp.linear_fc1.layer_norm_weight": ("replicated", ("post_attention_layernorm",)),
    "mlp.linear_fc1.weight": ("gate_up", ("mlp.gate_proj", "mlp.up_proj")),
    "mlp.linear_fc2.weight": ("columns", ("mlp.down_proj",)),
}
