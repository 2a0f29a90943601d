"""Qwen3 (dense): Llama with norms of query and key, and heads of a width of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_ipt.architecture import Architecture
from megatron_ipt.convert.families import decoder

weights_of = decoder.weights_of
DEFAULTS = {"num_key_value_heads": 32, "head_dim": 128}  # transformers' own, where a config.json is silent


def architecture(config: dict[str, Any], path: Path) -> Architecture:
    reasons = {"use_sliding_window": decoder.WINDOW_OF_SOME_LAYERS, "attention_bias": decoder.BIAS_OF_O_PROJ}
    decoder.refuse(config, path, **reasons)
    return decoder.read_numbers("qwen3", {**DEFAULTS, **config}, path)


def config_json(architecture: Architecture, max_position_embeddings: int) -> dict[str, Any]:
    """The config.json of a model that was trained from scratch."""
    common = decoder.numbers(architecture, "Qwen3ForCausalLM", max_position_embeddings)
    return {**common, "attention_bias": False, "use_sliding_window": False}
