"""The config.json of an exported model: the source's own, and of it only what training changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.convert.families import FAMILIES
from megatron_ipt.convert.reference import open_tokenizer

FREE: Final = frozenset(
    {
        *("layernorm_epsilon", "rotary_base", "rope_scaling", "window_size", "init_method_std"),
        "share_embeddings_and_output_weights",
    }
)
"""What a recipe's model.* may change about loaded weights; the rest is their shapes."""

Changes = dict[str, tuple[Any, Any]]


def exported_config(
    architecture: Architecture, given: Mapping[str, Any] | None, source: Path | None, length: int | None, dtype: str
) -> tuple[dict[str, Any], Changes]:
    """(config.json, key -> (before, after)).  `given` is the source's, None for a model from scratch.

    `length` is the sequence length of the run [tokens]: positions beyond the source's were trained if it is more.
    """
    family = FAMILIES[architecture.family]
    if given is None or source is None:
        return {**family.config_json(architecture, length or 2048), "dtype": dtype}, {}
    config = {**given, **_model_changes(architecture, given, source)}
    if length is not None and length > config.get("max_position_embeddings", length):
        config["max_position_embeddings"] = length
    config["torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"] = dtype
    if family.architecture(config, source / "config.json") != architecture:
        problem = "config.json describes another model than the checkpoint"
        raise UserError(source, problem, "give the one it began from")
    return config, {name: (given.get(name), now) for name, now in config.items() if given.get(name) != now}


def token_ids(tokenizer: Path | None) -> dict[str, int | None]:
    """What a model from scratch says of its first and last token: transformers' own defaults are Llama's, 1 and 2.

    None where the tokenizer's directory does not name them, or is not given.
    """
    found: dict[str, int | None] = {"bos_token_id": None, "eos_token_id": None}
    if tokenizer is None:
        return found
    if not tokenizer.exists():
        raise UserError(tokenizer, "no tokenizer there", "give its directory or its file")
    file, settings = tokenizer / "tokenizer.json", tokenizer / "tokenizer_config.json"
    if not file.exists() or not settings.exists():
        return found
    told = json.loads(settings.read_text(encoding="utf-8"))
    for name in ("bos_token", "eos_token"):
        token = told.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            found[f"{name}_id"] = open_tokenizer(file).token_to_id(token)
    return found


def _model_changes(architecture: Architecture, given: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The keys of what the recipe set otherwise than the source, in the spelling that the source uses."""
    family = FAMILIES.get(given.get("model_type", ""))
    if family is None or family is not FAMILIES[architecture.family]:
        problem = f"is a model of type '{given.get('model_type')}', the checkpoint is of family {architecture.family}"
        raise UserError(source, problem, "give the one it began from")
    before = family.architecture(given, source / "config.json")
    ours, theirs = asdict(architecture), asdict(before)
    changed = {name for name in ours if ours[name] != theirs[name]}
    if changed - FREE:
        name = min(changed - FREE)
        problem = f"config.json describes another model than the checkpoint: {name} {theirs[name]}, not {ours[name]}"
        raise UserError(source, problem, "give the one it began from")
    was, now = family.config_json(before, 0), family.config_json(architecture, 0)
    found = {name: now[name] for name in now if now[name] != was[name]}
    rope = {name: found.pop(name) for name in ("rope_theta", "rope_parameters") if name in found}
    return found | _rope(rope, given)


def _rope(found: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 4 has `rope_theta` and `rope_scaling`, 5 has both in `rope_parameters`."""
    if not found:
        return {}
    wanted = found["rope_parameters"]
    if "rope_parameters" in given:
        result: dict[str, Any] = {"rope_parameters": wanted}
    else:
        scaled = {name: value for name, value in wanted.items() if name != "rope_theta"}
        result = {"rope_scaling": None if scaled["rope_type"] == "default" else scaled}
    if "rope_theta" in given or "rope_parameters" not in given:
        result["rope_theta"] = wanted["rope_theta"]
    return {name: value for name, value in result.items() if given.get(name) != value}
