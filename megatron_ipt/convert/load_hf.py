"""Weights of a Hugging Face directory into this rank's model: each rank reads only its slices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.convert.families import FAMILIES
from megatron_ipt.convert.families.weights import Weights
from megatron_ipt.mcore import parallel
from megatron_ipt.mcore.model import named_parameters


class SafetensorsDirectory:
    """The tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` lists."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        index = directory / "model.safetensors.index.json"
        self._file_of: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        if index.exists():
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            self._file_of = {name: directory / file for name, file in weight_map.items()}
        else:
            file = directory / "model.safetensors"
            self._file_of = dict.fromkeys(self._handle(file).keys(), file)

    def slice(self, name: str, expected: tuple[int, ...]) -> Any:
        """A lazily read tensor; UserError if it is missing or not of the `expected` shape."""
        if name not in self._file_of:
            raise UserError(self.directory, f"tensor '{name}' is missing", "copy the directory again")
        tensor = self._handle(self._file_of[name]).get_slice(name)
        shape = tuple(tensor.get_shape())
        if shape != expected:
            raise UserError(
                self._file_of[name],
                f"tensor '{name}' is {shape}, expected {expected}",
                "set model.* as config.json has it",
            )
        return tensor

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(str(file), "pt")
            except (OSError, SafetensorError) as error:
                raise UserError(file, f"not readable as safetensors ({error})", "copy the directory again") from error
        return self._open[file]


def load_hf(chunks: Sequence[torch.nn.Module], directory: Path, architecture: Architecture) -> None:
    """Fill this rank's parameters.  Call it before the optimizer is made, so that its fp32 masters are right."""
    source = SafetensorsDirectory(directory)
    family = FAMILIES[architecture.family]
    rank, size = parallel.tensor_parallel_rank(), parallel.tensor_parallel_size()
    with torch.no_grad():
        for name, parameter in named_parameters(chunks):
            weights = family.weights_of(name, architecture)
            value = _READERS[weights.kind](source, weights, architecture, tuple(parameter.shape), rank, size)
            parameter.copy_(value)


def fuse_qkv(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, width: int) -> torch.Tensor:
    """[heads x width, hidden], 2 x [groups x width, hidden] -> for each group its query heads, then k, then v.

    Of biases the same, without the last dimension.
    """
    groups, rest = key.shape[0] // width, key.shape[1:]
    parts = [part.reshape(groups, -1, *rest) for part in (query, key, value)]
    return torch.cat(parts, dim=1).reshape(-1, *rest)


def _share(rows: int, rank: int, size: int) -> slice:
    return slice(rank * rows // size, (rank + 1) * rows // size)


Shape = tuple[int, ...]


def _replicated(source: SafetensorsDirectory, w: Weights, a: Architecture, shape: Shape, rank: int, size: int) -> Any:
    return source.slice(w.names[0], shape)[:]


def _columns(source: SafetensorsDirectory, w: Weights, a: Architecture, shape: Shape, rank: int, size: int) -> Any:
    return source.slice(w.names[0], (shape[0], shape[1] * size))[:, _share(shape[1] * size, rank, size)]


def _vocabulary(source: SafetensorsDirectory, w: Weights, a: Architecture, shape: Shape, rank: int, size: int) -> Any:
    """This rank's rows; those past the vocabulary are Megatron's padding and zero."""
    start = rank * shape[0]
    rows = source.slice(w.names[0], (a.vocab_size, shape[1]))[start : min(start + shape[0], a.vocab_size)]
    return torch.cat([rows, rows.new_zeros(shape[0] - rows.shape[0], shape[1])])


def _qkv(source: SafetensorsDirectory, w: Weights, a: Architecture, shape: Shape, rank: int, size: int) -> Any:
    heads = (a.num_attention_heads, a.num_query_groups, a.num_query_groups)
    parts = []
    for name, count in zip(w.names, heads, strict=True):
        rows = count * a.kv_channels
        parts.append(source.slice(name, (rows, *shape[1:]))[_share(rows, rank, size)])
    return fuse_qkv(parts[0], parts[1], parts[2], a.kv_channels)


def _gate_up(source: SafetensorsDirectory, w: Weights, a: Architecture, shape: Shape, rank: int, size: int) -> Any:
    rows = a.ffn_hidden_size
    return torch.cat([source.slice(name, (rows, shape[1]))[_share(rows, rank, size)] for name in w.names])


_READERS = {
    "replicated": _replicated,
    "columns": _columns,
    "vocabulary": _vocabulary,
    "qkv": _qkv,
    "gate_up": _gate_up,
}
