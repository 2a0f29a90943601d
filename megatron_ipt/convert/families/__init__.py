"""Model families: how a Hugging Face directory spells an architecture and its weights.  One file a family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.convert.families import llama, mistral, qwen2, qwen3

FAMILIES = {"llama": llama, "mistral": mistral, "qwen2": qwen2, "qwen3": qwen3}


def read_config(directory: Path) -> dict[str, Any]:
    """The `config.json` of a Hugging Face directory; UserError where there is none."""
    path = directory / "config.json"
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(directory, "no Hugging Face directory (config.json is missing)", "give one") from error
    except ValueError as error:
        raise UserError(path, f"not JSON ({error})", "copy the directory again") from error
    if not isinstance(config, dict):
        raise UserError(path, "is no JSON object", "copy the directory again")
    return config


def read_architecture(directory: Path) -> Architecture:
    """The architecture that a Hugging Face directory describes; UserError for one we cannot build exactly."""
    config = read_config(directory)
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        known = ", ".join(FAMILIES)
        raise UserError(directory, f"model_type '{config.get('model_type')}' is not supported", f"supported: {known}")
    return family.architecture(config, directory / "config.json")
