"""Tensors of a Hugging Face directory that nobody reads: a sign that it is another model than its config.json says."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from typing import Final

import torch

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.convert.safetensors_directory import SafetensorsDirectory

EMBEDDINGS: Final = "model.embed_tokens.weight"
HEAD: Final = "lm_head.weight"
ROWS: Final = 4096


def check_unread(source: SafetensorsDirectory, read: AbstractSet[str], architecture: Architecture) -> None:
    """UserError for a tensor of `source` that is not among those `read`, and that transformers would compute with."""
    for name in sorted(source.names() - read):
        if name == HEAD and architecture.share_embeddings_and_output_weights:
            _check_tied(source, architecture)
        elif not name.endswith("rotary_emb.inv_freq"):
            problem = f"tensor '{name}' is of no use to a model of family {architecture.family}"
            mend = "compare its config.json with the weights"
            layer = re.match(r"model\.layers\.(\d+)\.", name)
            if layer is not None and int(layer[1]) >= architecture.num_layers:
                problem = f"tensor '{name}' is of no use to a model of {architecture.num_layers} layers"
            raise UserError(source.directory, problem, mend)


def _check_tied(source: SafetensorsDirectory, architecture: Architecture) -> None:
    """UserError where the files hold an output table that is not the embeddings; read in parts of some MB."""
    shape = (architecture.vocab_size, architecture.hidden_size)
    one, other = (source.slice(name, shape) for name in (EMBEDDINGS, HEAD))
    for start in range(0, shape[0], ROWS):
        if not torch.equal(one[start : start + ROWS], other[start : start + ROWS]):
            problem = f"config.json ties the embeddings, but '{HEAD}' is not '{EMBEDDINGS}'"
            raise UserError(source.directory, problem, "set tie_word_embeddings to false there, or remove that tensor")
