"""A checkpoint as a Hugging Face directory that transformers loads; memory does not grow with its layers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Final

import torch

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.convert import parts, safetensors_directory
from megatron_ipt.convert.exported_config import exported_config, token_ids
from megatron_ipt.convert.exported_files import COPIED, TOKENIZER, check_replaceable, copy
from megatron_ipt.convert.families import read_config
from megatron_ipt.mcore import parallel
from megatron_ipt.mcore.checkpoint import RunCard, resolve
from megatron_ipt.mcore.stream import Stored, StoredWeights

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_hf(
    checkpoint: Path,
    out: Path,
    source: Path | None = None,
    dtype: str | None = None,
    tokenizer: Path | None = None,
) -> dict[str, tuple[Any, Any]]:
    """Write `checkpoint` to `out`; returns what differs from the source's config.json: key -> (before, after).

    `source` is the Hugging Face directory the run began from (default: the one its run card names): its config.json is
    kept but for what training changed, its tokenizer is copied, unless `tokenizer` (a directory, or one file) is given:
    a model from scratch has no other.  Padding of the vocabulary is cut.  The weights' type is the checkpoint's own
    unless `dtype` is given.  `out` appears when all of it is written; of what stands there only an export is replaced.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}", "is no type that weights are written in", f"use one of {', '.join(DTYPES)}")
    folder = resolve(checkpoint)
    card = RunCard.read(folder)
    source = source or _began_from(card)
    given = None if source is None else read_config(source)
    out = out.absolute()
    check_replaceable(out, folder, [path for path in (checkpoint, source, tokenizer) if path is not None])
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with parallel.distributed():
            stored = StoredWeights(folder)
            kind = DTYPES[dtype] if dtype else _common_type(stored.weights)
            length = card.recipe.get("train", {}).get("seq_length")
            config, changed = exported_config(card.architecture, given, source, length, str(kind).split(".")[1])
            if given is None:
                config |= token_ids(tokenizer)
            partial.mkdir(parents=True)
            _write_weights(partial, stored, card.architecture, kind)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if source is not None:
            copy(source, partial, COPIED)
        tokenizer = tokenizer or source
        if tokenizer is not None:
            copy(tokenizer, partial, TOKENIZER)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    except OSError as error:
        raise UserError(out, f"could not be written ({error})", "make room and export again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return changed


def _began_from(card: RunCard) -> Path | None:
    """The Hugging Face directory that the run card names."""
    if not card.load_hf:
        return None
    if not (Path(card.load_hf) / "config.json").exists():
        raise UserError(card.load_hf, "the directory that the run began from is not there", "give --source DIRECTORY")
    return Path(card.load_hf)


def _common_type(weights: Sequence[Stored]) -> torch.dtype:
    """The type that holds every weight as it is."""
    return reduce(torch.promote_types, (weight.dtype for weight in weights))


def _write_weights(folder: Path, stored: StoredWeights, architecture: Architecture, dtype: torch.dtype) -> None:
    """Each tensor is read, split and written before the next; in the order in which transformers' own files have them.

    The last stage of a pipeline has the embeddings of a tied model under their own name: they are there once.
    """
    weights = sorted(stored.weights, key=_place)
    shapes = [parts.shapes(weight.name, weight.shape, architecture) for weight in weights]
    _all_there(stored.checkpoint, [name for group in shapes for name in group], architecture)

    def make(number: int) -> dict[str, torch.Tensor]:
        return parts.split(weights[number].name, stored.read(weights[number]), architecture)

    safetensors_directory.write(folder, shapes, dtype, make)


def _place(weight: Stored) -> tuple[int, int, str]:
    """Embeddings, then layer by layer, then the rest."""
    layer = re.match(r"decoder\.layers\.(\d+)\.", weight.name)
    if layer is not None:
        return 1, int(layer[1]), weight.name
    return (0 if weight.name.startswith("embedding.") else 2), 0, weight.name


def _all_there(checkpoint: Path, names: Sequence[str], architecture: Architecture) -> None:
    """UserError unless `names` are as many tensors as a model of this architecture has; its numbers are counted too."""
    layers = {int(found[1]) for name in names if (found := re.match(r"model\.layers\.(\d+)\.", name))}
    tied = architecture.share_embeddings_and_output_weights
    wanted = {"model.embed_tokens.weight", "model.norm.weight", *(() if tied else ("lm_head.weight",))}
    missing = wanted - set(names)
    if layers != set(range(architecture.num_layers)) or missing:
        problem = f"holds {len(layers)} of {architecture.num_layers} layers" if not missing else f"no {min(missing)}"
        raise UserError(
            checkpoint, f"its weights are not those its run card tells: {problem}", "use another checkpoint"
        )
