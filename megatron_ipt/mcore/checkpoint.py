"""Sharded checkpoints that any layout can load: megatron-core's distributed checkpoint, and a run card beside it.

    SAVE/iter_0000030/                        written as iter_0000030.partial, renamed when all of it is on disk
        __0_0.distcp ... .metadata ...        megatron-core's (torch_dist)
        run_card.json                         what made it: architecture, recipe, data position, versions
        integrity.json                        the SHA-256 of every file above (integrity.py)
    SAVE/latest_checkpointed_iteration.txt    moves last

The optimizer's state is `fully_reshardable`.  The files hold pickles: nothing is opened before every file has the
hash that integrity.json gives it, and a file that it does not list is refused.
"""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

import queue
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core import parallel_state as mpu
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.optimizer import MegatronOptimizer

from data_prep.errors import UserError
from megatron_ipt.mcore import integrity, parallel
from megatron_ipt.mcore.checkpoint_folder import (
    RunCard,
    commit,
    folder_of,
    fresh_folder,
    latest,
    mend,
    partial_of,
    resolve,
    write_card,
)
from megatron_ipt.mcore.model import finish_param_gather, unwrap, without_grad_buffers

__all__ = ["RunCard", "latest", "load", "resolve", "save"]


def save(folder: Path, card: RunCard, chunks: Sequence[torch.nn.Module], optimizer: MegatronOptimizer | None) -> Path:
    """Write SAVE/iter_N, then move `latest` to it.  All ranks call it; a full disk leaves the one before usable."""
    final = folder_of(folder, card.iteration)
    partial = partial_of(final)
    try:
        parallel.on_main(lambda: fresh_folder(partial))
        finish_param_gather(chunks, optimizer)
        parallel.on_all(lambda: _write_tensors(partial, chunks, optimizer))
        parallel.on_main(lambda: write_card(partial, card))
        integrity.write(partial)
        parallel.on_main(lambda: commit(partial, final, card))
    except OSError as error:
        raise UserError(final, f"the checkpoint was not written ({error})", mend(folder)) from error
    return final


def load(checkpoint: Path, chunks: Sequence[torch.nn.Module], optimizer: MegatronOptimizer | None) -> None:
    """Read weights, and the optimizer's state if one is given, into this rank's layout.  Hashes first."""
    integrity.verify(checkpoint)
    try:
        parallel.on_all(lambda: _read_tensors(checkpoint, chunks, optimizer))
    except OSError as error:
        raise UserError(checkpoint, f"does not fit this model ({error})", "use the recipe that wrote it") from error


def _read_tensors(checkpoint: Path, chunks: Sequence[torch.nn.Module], optimizer: MegatronOptimizer | None) -> None:
    state = dist_checkpointing.load(_state(chunks, optimizer, is_loading=True), str(checkpoint))
    for index, chunk in enumerate(chunks):
        unwrap(chunk).load_state_dict(state[_model_key(index, chunks)])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])


def _write_tensors(partial: Path, chunks: Sequence[torch.nn.Module], optimizer: MegatronOptimizer | None) -> None:
    content = _metadata(content=True)
    _keep_results_here()
    with without_grad_buffers(chunks):  # the optimizer's state is gathered: twelve bytes a parameter more
        state = _state(chunks, optimizer, is_loading=False)
        dist_checkpointing.save(state, str(partial), content_metadata=content, async_strategy="mcore")
        del state


def _state(
    chunks: Sequence[torch.nn.Module], optimizer: MegatronOptimizer | None, *, is_loading: bool
) -> dict[str, Any]:
    metadata = _metadata(content=False)
    state: dict[str, Any] = {
        _model_key(index, chunks): unwrap(chunk).sharded_state_dict(metadata=metadata)
        for index, chunk in enumerate(chunks)
    }
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict(dict(state), is_loading=is_loading, metadata=metadata)
        if not is_loading:
            _free_gathered(state["optimizer"])
    return state


def _free_gathered(state: dict[str, Any]) -> None:
    """Give each tensor that is a view of a gathered buffer storage of its own, buffer by buffer.

    megatron-core's writer copies every such view while all buffers still stand; this way the copies never need more
    than one buffer beside them.  What has its own storage is the optimizer's live state: it is not copied.
    """
    apply_factories(state)
    buffers: dict[int, list[ShardedTensor]] = {}
    for part in nested_values(state):
        if not isinstance(part, ShardedTensor) or part.data is None:
            continue
        if part.data.untyped_storage().nbytes() > part.data.nbytes:
            buffers.setdefault(part.data.untyped_storage().data_ptr(), []).append(part)
    for views in buffers.values():
        for view in views:
            view.data = view.data.clone()


def _model_key(index: int, chunks: Sequence[torch.nn.Module]) -> str:
    return "model" if len(chunks) == 1 else f"model{index}"


def _metadata(*, content: bool) -> dict[str, Any]:
    """How the optimizer is sharded; `content` is the part that is stored."""
    stored: dict[str, Any] = {
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": True,
        "chained_optim_avoid_prefix": True,
        "singleton_local_shards": False,
    }
    return stored if content else {**stored, "dp_cp_group": mpu.get_data_parallel_group(with_context_parallel=True)}


def _keep_results_here() -> None:
    """Collect the writers' results in this process; megatron-core starts another one for the queue they go through.

    That one serves asynchronous saves, which ours are not.  torchrun sends SIGTERM to a worker's whole process group:
    the worker notes it and goes on to save, but the other process would be gone, and the save with it.
    """
    if filesystem_async._results_queue is None:
        filesystem_async._results_queue = queue.Queue()
