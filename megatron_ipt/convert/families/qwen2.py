"""Qwen2 and Qwen2.5: Llama with biases of query, key and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_ipt.architecture import Architecture
from megatron_ipt.convert.families import decoder

weights_of = decoder.weights_of
DEFAULTS = {"num_key_value_heads": 32}  # transformers' own, where a config.json is silent


def architecture(config: dict[str, Any], path: Path) -> Architecture:
    decoder.refuse(config, path, use_sliding_window=decoder.WINDOW_OF_SOME_LAYERS)
    return decoder.read_numbers("qwen2", {**DEFAULTS, **config}, path)


def config_json(architecture: Architecture, max_position_embeddings: int) -> dict[str, Any]:
    """The config.json of a model that was trained from scratch."""
    common = decoder.numbers(architecture, "Qwen2ForCausalLM", max_position_embeddings)
    return {**common, "use_sliding_window": False}
