"""Mistral: Llama with a window that every layer looks through (`sliding_window`; null: none)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.convert.families import decoder

weights_of = decoder.weights_of
DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096}  # transformers' own, where a config.json is silent


def architecture(config: dict[str, Any], path: Path) -> Architecture:
    """Hugging Face counts the token itself among the `sliding_window` places, Megatron's `window_size` does not."""
    config = {**DEFAULTS, **config}
    window = config["sliding_window"]
    if window is not None and not (isinstance(window, int) and window >= 1):
        problem = f"sliding_window is {window!r}, expected a whole number of at least 1, or null"
        raise UserError(path, problem, decoder.AGAIN)
    return decoder.read_numbers("mistral", config, path, window_size=None if window is None else (window - 1, 0))


def config_json(architecture: Architecture, max_position_embeddings: int) -> dict[str, Any]:
    """The config.json of a model that was trained from scratch."""
    common = decoder.numbers(architecture, "MistralForCausalLM", max_position_embeddings)
    window = architecture.window_size
    return {**common, "sliding_window": None if window is None else window[0] + 1}
