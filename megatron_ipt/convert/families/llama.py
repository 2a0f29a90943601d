"""Llama 2, 3 and 3.1 (its rope scaling), SmolLM2 (tied): `model_type: llama`, without biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_ipt.architecture import Architecture
from megatron_ipt.convert.families import decoder

weights_of = decoder.weights_of


def architecture(config: dict[str, Any], path: Path) -> Architecture:
    decoder.refuse(config, path, attention_bias=decoder.BIAS_OF_O_PROJ, mlp_bias="ours has none there")
    return decoder.read_numbers("llama", config, path)


def config_json(architecture: Architecture, max_position_embeddings: int) -> dict[str, Any]:
    """The config.json of a model that was trained from scratch."""
    common = decoder.numbers(architecture, "LlamaForCausalLM", max_position_embeddings)
    return {**common, "attention_bias": False, "mlp_bias": False}
