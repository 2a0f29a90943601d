"""A checkpoint as a Hugging Face directory that transformers loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.convert.families import FAMILIES, read_config
from megatron_ipt.convert.families.weights import Weights
from megatron_ipt.convert.models import open_model
from megatron_ipt.mcore.checkpoint import RunCard, resolve
from megatron_ipt.mcore.model import named_parameters

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)


def export_hf(checkpoint: Path, out: Path, source: Path | None = None) -> dict[str, Any]:
    """Write `checkpoint` to `out`; returns what differs from the source's config.json.

    `source` is the Hugging Face directory the run began from (default: the one its run card names): its config.json is
    kept but for what training changed, its tokenizer is copied.  Padding of the vocabulary is cut.  `out` appears when
    all of it is written.
    """
    card = RunCard.read(resolve(checkpoint))
    source = source or (Path(card.load_hf) if card.load_hf else None)
    if source is not None:
        read_config(source)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with open_model(checkpoint, bf16=True) as opened:
        architecture = opened.architecture
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in named_parameters(opened.chunks):
            weights = FAMILIES[architecture.family].weights_of(name, architecture)
            tensors.update(_tensors(weights, parameter.detach(), architecture))
    try:
        save_torch_state_dict(tensors, partial, max_shard_size="5GB", metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        shutil.rmtree(partial)
        raise UserError(out, f"could not be written ({error})", "make room and export again") from error
    length = card.recipe.get("train", {}).get("seq_length", 2048)
    changed = _write_config(partial, architecture, source, length)
    if source is not None:
        for file in TOKENIZER_FILES:
            if (source / file).exists():
                shutil.copyfile(source / file, partial / file)
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    return changed


def _tensors(weights: Weights, value: torch.Tensor, architecture: Architecture) -> dict[str, torch.Tensor]:
    """The Hugging Face tensors of one whole Megatron parameter."""
    parts: tuple[torch.Tensor, ...]
    if weights.kind == "qkv":
        parts = split_qkv(value, architecture)
    elif weights.kind == "gate_up":
        parts = value.chunk(2)
    elif weights.kind == "vocabulary":
        parts = (value[: architecture.vocab_size],)
    else:
        parts = (value,)
    return {name: part.contiguous().clone() for name, part in zip(weights.names, parts, strict=True)}


def split_qkv(value: torch.Tensor, architecture: Architecture) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The inverse of `load_hf.fuse_qkv`: query, key and value rows out of `[q heads; k; v]` a group."""
    groups, width = architecture.num_query_groups, architecture.kv_channels
    queries = architecture.num_attention_heads // groups * width
    rest = value.shape[1:]
    grouped = value.reshape(groups, queries + 2 * width, *rest)
    query, key, values = grouped.split((queries, width, width), dim=1)
    return query.reshape(-1, *rest), key.reshape(-1, *rest), values.reshape(-1, *rest)


def _write_config(
    folder: Path, architecture: Architecture, source: Path | None, max_position_embeddings: int
) -> dict[str, Any]:
    """config.json: the source's own with what training changed; or, from scratch, the family's."""
    family = FAMILIES[architecture.family]
    changed: dict[str, Any] = {}
    if source is None:
        config = family.config_json(architecture, max_position_embeddings)
    else:
        config = read_config(source)
        if family.architecture(config, source / "config.json") != architecture:
            raise UserError(
                source, "config.json describes another model than the checkpoint", "give the one it began from"
            )
    dtype = "dtype" if "dtype" in config or source is None else "torch_dtype"
    if config.get(dtype) != "bfloat16":
        changed[dtype] = [config.get(dtype), "bfloat16"]
        config[dtype] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return changed
