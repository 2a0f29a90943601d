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
    refuse_parts(config, path, "full_attention" if window_size is None else "sliding_attention")
    heads, hidden = (_whole(config, name, path) for name in ("num_attention_heads", "hidden_size"))
    groups = _whole(config, "num_key_value_heads", path, heads)
    if heads % groups or (config.get("head_dim") is None and hidden % heads):
        problem = f"num_attention_heads {heads} does not go with num_key_value_heads {groups} and hidden_size {hidden}"
        raise UserError(path, problem, AGAIN)
    rope = _rope(config, path)
    return Architecture(
        num_layers=_whole(config, "num_hidden_layers", path),
        hidden_size=hidden,
        ffn_hidden_size=_whole(config, "intermediate_size", path),
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=_whole(config, "head_dim", path, hidden // heads),
        layernorm_epsilon=_number(config, "rms_norm_eps", path),
        rotary_base=_number(rope, "rope_theta", path),
        vocab_size=_whole(config, "vocab_size", path),
        share_embeddings_and_output_weights=bool(config.get("tie_word_embeddings", False)),
        init_method_std=_number(config, "initializer_range", path, 0.02),
        family=family,
        window_size=window_size,
        rope_scaling=_rope_scaling(rope, path),
        **FAMILIES[family],
    )


def _whole(config: Mapping[str, Any], name: str, path: Path, default: int | None = None) -> int:
    """A count of at least 1; `default` where it is missing or null."""
    found = config.get(name) if config.get(name) is not None or default is None else default
    if not isinstance(found, int) or found < 1:
        raise _no_number(config, name, path, "a whole number of at least 1")
    return found


def _number(config: Mapping[str, Any], name: str, path: Path, default: float | None = None) -> float:
    found = config.get(name) if config.get(name) is not None or default is None else default
    if not isinstance(found, int | float):
        raise _no_number(config, name, path, "a number")
    return found


def _no_number(config: Mapping[str, Any], name: str, path: Path, expected: str) -> UserError:
    problem = f"{name} is {config[name]!r}, expected {expected}" if name in config else f"key '{name}' is missing"
    return UserError(path, problem, AGAIN)


def _rope(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Rotary positions as transformers 5 reads them, whichever of its spellings, or of 4's, a config.json has.

    `rope_scaling` comes before `rope_parameters`, `rope_theta` and `partial_rotary_factor` within them before those
    beside, and `original_max_position_embeddings` beside them before the one within.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
        raise UserError(path, "rope_parameters are not one set for all layers", "use a model with one set")
    beside = {name: config[name] for name in ("rope_theta", "partial_rotary_factor") if config.get(name) is not None}
    length = {"original_max_position_embeddings": config.get("max_position_embeddings", 8192)}
    first = {name: config[name] for name in length if config.get(name) is not None}
    return {"rope_theta": 10000.0, **length, **beside, **rope, **first}


def _rope_scaling(rope: Mapping[str, Any], path: Path) -> RopeScaling | None:
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(path, "partial_rotary_factor: part of a head only is rotated", "use a model without it")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise UserError(path, f"rope scaling '{kind}' is not supported", "use a model with llama3's, or without any")
    factor, low, high = (_number(rope, name, path) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    return RopeScaling(factor, low, high, _whole(rope, "original_max_position_embeddings", path))


def refuse_parts(config: Mapping[str, Any], path: Path, attention: str) -> None:
    """UserError for what no family here has: other activations, quantized weights, layers of another attention."""
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise UserError(path, f"hidden_act '{config['hidden_act']}' is not supported", "use a model with silu")
    if config.get("quantization_config"):
        raise UserError(path, "quantization_config: its weights are quantized", "use the model as it was before")
    kinds = config.get("layer_types") or ()
    others = sorted({str(kind) for kind in kinds if kind != attention})
    if others:
        reason = WINDOW_OF_SOME_LAYERS if "sliding_attention" in kinds else f"ours have {attention} alone"
        raise UserError(path, f"layer_types is not supported: {', '.join(others)}: {reason}", "use a model without it")


def refuse(config: Mapping[str, Any], path: Path, **reasons: str) -> None:
    """UserError for the first key of `reasons` that the config.json has switched on."""
    for key, reason in reasons.items():
        if config.get(key):
            raise UserError(path, f"{key} is not supported: {reason}", "use a model without it")


AGAIN = "copy the directory again"
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
