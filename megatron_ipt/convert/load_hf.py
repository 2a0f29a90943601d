"""Weights of a Hugging Face directory into this rank's model: each rank reads only its slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.convert.families import FAMILIES
from megatron_ipt.convert.families.weights import Weights
from megatron_ipt.convert.safetensors_directory import SafetensorsDirectory
from megatron_ipt.convert.unread import check_unread
from megatron_ipt.mcore import parallel
from megatron_ipt.mcore.model import named_parameters
from megatron_ipt.mcore.weights import fill_weight


def load_hf(chunks: Sequence[torch.nn.Module], directory: Path, architecture: Architecture) -> None:
    """Fill this rank's parameters.  Call it before the optimizer is made, so that its fp32 masters are right.

    All ranks call it: what a rank finds wrong in a file that it alone reads is the same UserError on all.  So is a
    tensor that no rank reads: that model is another one.
    """
    rank, size = parallel.tensor_parallel_rank(), parallel.tensor_parallel_size()
    opened: list[SafetensorsDirectory] = []

    def fill() -> set[str]:
        source, read = SafetensorsDirectory(directory), set[str]()
        opened.append(source)
        for name, parameter in named_parameters(chunks):
            fill_weight(parameter, read_weight(source, name, tuple(parameter.shape), architecture, rank, size))
            read |= {*FAMILIES[architecture.family].weights_of(name, architecture).names}
        return read

    with torch.no_grad():
        read = set[str]().union(*_on_all(fill))
        first = parallel.place()[0] == 0  # one rank looks at all names, and of a tied model at two tensors
        _on_all(lambda: check_unread(opened[0], read, architecture) if first else None)


def _on_all[T](action: Callable[[], T]) -> list[T]:
    """What `action` gives on each rank; the first rank's UserError on all."""

    def tried() -> T | UserError:
        try:
            return action()
        except UserError as error:
            return error

    found = parallel.on_all(tried)
    for each in found:
        if isinstance(each, UserError):
            raise each
    return found  # type: ignore[return-value]


def read_weight(
    source: SafetensorsDirectory,
    name: str,
    shape: tuple[int, ...],
    architecture: Architecture,
    rank: int = 0,
    size: int = 1,
) -> torch.Tensor:
    """The Megatron weight `name` as tensor-parallel rank `rank` of `size` holds it, in the shape that it has there."""
    weights = FAMILIES[architecture.family].weights_of(name, architecture)
    found: torch.Tensor = _READERS[weights.kind](source, weights, architecture, shape, rank, size)
    return found


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
