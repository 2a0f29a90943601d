"""A distributed checkpoint's weights one at a time, out of it and into it: memory does not grow with the layers.

`dist_checkpointing` loads and saves whole models: what it needs is a state dict with room for every tensor.  Here the
same files are read through torch's public reader, and written by torch's own writer from a model on the meta device
whose tensors are made when their turn comes.

megatron-core stacks the layers: `decoder.layers.mlp.linear_fc2.weight` is [layers, ...], stored a layer at a time.
"""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from data_prep.errors import UserError
from megatron_ipt.mcore import integrity
from megatron_ipt.mcore.model import unwrap

_STACKED = re.compile(r"decoder\.layers\.(?!\d)(.+)")
_OF_THE_MODEL = ("embedding.", "decoder.", "output_layer.")


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight as the checkpoint has it: whole, whatever layout wrote it, with its vocabulary padded."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class StoredWeights:
    """The weights in an iter_* folder, each read when asked for.  A process group must be there: hashes come first."""

    def __init__(self, checkpoint: Path) -> None:
        integrity.verify(checkpoint)  # .metadata is a pickle
        self.checkpoint = checkpoint
        self._reader = dcp.FileSystemReader(checkpoint)
        self._metadata: Metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(self._metadata, True)
        self._place: dict[str, tuple[str, int | None]] = {}
        self.weights = [weight for key in self._metadata.state_dict_metadata for weight in self._weights_of(key)]

    def read(self, weight: Stored) -> torch.Tensor:
        key, layer = self._place[weight.name]
        stored = self._metadata.state_dict_metadata[key]
        assert isinstance(stored, TensorStorageMetadata)
        lead = () if layer is None else (layer,)
        offsets, sizes = (
            torch.Size((*lead, *(0 for _ in weight.shape))),
            torch.Size((*(1 for _ in lead), *weight.shape)),
        )
        out = torch.empty(sizes, dtype=weight.dtype)
        items = create_read_items_for_chunk_list(key, stored, [ChunkStorageMetadata(offsets, sizes)])
        if sum(item.lengths.numel() for item in items) != out.numel():
            raise UserError(self.checkpoint, f"only a part of {weight.name} is there", "use another checkpoint")
        self._reader.read_data(LoadPlan(items), _Into(out)).wait()
        return out.view(weight.shape)

    def _weights_of(self, key: str) -> list[Stored]:
        """The weights under a key of the files; none for the optimizer's and for what is no tensor."""
        stored = self._metadata.state_dict_metadata[key]
        if not isinstance(stored, TensorStorageMetadata) or not key.startswith(_OF_THE_MODEL):
            return []
        shape, dtype = tuple(stored.size), stored.properties.dtype
        stacked = _STACKED.fullmatch(key)
        if stacked is None:
            self._place[key] = (key, None)
            return [Stored(key, shape, dtype)]
        names = [f"decoder.layers.{layer}.{stacked[1]}" for layer in range(shape[0])]
        self._place |= {name: (key, layer) for layer, name in enumerate(names)}
        return [Stored(name, shape[1:], dtype) for name in names]


def names(checkpoint: Path) -> frozenset[str]:
    """The keys of all that an iter_* folder holds, whose hashes were verified."""
    return frozenset(dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata)


class _Into(dcp.DefaultLoadPlanner):
    """Puts what is read into one tensor."""

    def __init__(self, out: torch.Tensor) -> None:
        super().__init__()
        self._out = out

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        return _narrow(self._out, read_item.dest_offsets, read_item.lengths)

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None: ...


Make = Callable[[str, tuple[int, ...]], torch.Tensor]
"""(name, shape) as `StoredWeights` has them -> the weight, whole and on the CPU."""


def write(folder: Path, chunk: torch.nn.Module, make: Make, content: dict[str, Any], sharding: dict[str, Any]) -> None:
    """What `dist_checkpointing.save` would write of a model, from one on the meta device, in one process.

    Each weight is in a file of its own, so that many ranks share the hashing of them when the checkpoint is loaded.
    """
    state: dict[str, Any] = {"model": unwrap(chunk).sharded_state_dict(metadata=sharding), "content_metadata": content}
    sharded, common = save_preprocess(state, validate_access_integrity=False)
    sharded["common_state"] = ShardedObject("common_state", common, (1,), (0,), replica_id=0)
    flat, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, True)
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=False, thread_count=1, per_thread_copy_ahead=0)
    tensors = mcore_to_pyt_state_dict(flat, False)
    try:
        dcp.save(tensors, storage_writer=writer, planner=_MadeWhenAsked(make), no_dist=True)
    except CheckpointException as error:  # torch puts any error into one of its own, which is no Exception
        cause, _ = error.failures[0]
        raise cause from error
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))


class _MadeWhenAsked(MCoreSavePlanner):
    """Gives the writer tensors that did not exist before."""

    def __init__(self, make: Make) -> None:
        super().__init__(dedup_replicated_tensors=False, flatten_state_dict=False, flatten_sharded_tensors=False)
        self._make = make
        self._last: tuple[str, torch.Tensor] | None = None

    def resolve_data(self, write_item: WriteItem) -> Any:
        if write_item.type == WriteItemType.BYTE_IO:
            return super().resolve_data(write_item)
        data = write_item.tensor_data
        assert data is not None
        name, shape, lead = write_item.index.fqn, tuple(data.size), 0
        stacked = _STACKED.fullmatch(name)
        if stacked is not None:
            name, shape, lead = f"decoder.layers.{data.chunk.offsets[0]}.{stacked[1]}", shape[1:], 1
        part = _narrow(self._whole(name, shape), data.chunk.offsets[lead:], data.chunk.sizes[lead:])
        return part.reshape(data.chunk.sizes).to(data.properties.dtype)

    def _whole(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The weight of that name; the last one is kept, since gate and up are two items of one weight."""
        if self._last is None or self._last[0] != name:
            self._last = None
            self._last = (name, self._make(name, shape))
        return self._last[1]


def _narrow(tensor: torch.Tensor, offsets: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
    for dimension, (start, size) in enumerate(zip(offsets, sizes, strict=True)):
        tensor = tensor.narrow(dimension, start, size)
    return tensor
