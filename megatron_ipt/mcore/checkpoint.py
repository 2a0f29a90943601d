"""Sharded checkpoints, saved and loaded: megatron-core's distributed checkpoint, and a run card beside it.

    SAVE/iter_0000030/                        written as iter_0000030.partial, renamed when all of it is on disk
        __0_0.distcp ... .metadata ...        megatron-core's (torch_dist)
        run_card.json                         what made it: architecture, recipe, data position, versions
        integrity.json                        the SHA-256 of every file above (integrity.py)
    SAVE/latest_checkpointed_iteration.txt    moves last

Weights load with any layout.  The distributed optimizer's state lies there in one of megatron-core's two forms:

    fully_reshardable    loads with any layout; each save gathers it over the replicas
    dp_reshardable       loads with the same TP and PP and any DP; each rank writes what it has

The files hold pickles: nothing is opened before every file has the hash that integrity.json gives it, and a file that
it does not list is refused.
"""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

import queue
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from megatron.core import dist_checkpointing
from megatron.core import parallel_state as mpu
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factories
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.optimizer import MegatronOptimizer

from data_prep.errors import UserError
from megatron_ipt.mcore import integrity, parallel, stream
from megatron_ipt.mcore.checkpoint_folder import (
    commit,
    folder_of,
    fresh_folder,
    latest,
    mend,
    older,
    partial_of,
    resolve,
    write_card,
)
from megatron_ipt.mcore.model import finish_param_gather, unwrap, without_grad_buffers
from megatron_ipt.mcore.run_card import DP_RESHARDABLE, FULLY_RESHARDABLE, WEIGHTS, RunCard, SavedLayout
from megatron_ipt.mcore.together import together
from megatron_ipt.mcore.weights import keep_for_masters

__all__ = ["RunCard", "latest", "load", "newest_whole", "resolve", "save", "save_made"]

EXTRA_STATE: Final = "_extra_state"
"""How torch names what a module keeps beside its parameters and buffers."""


def save(
    folder: Path,
    card: RunCard,
    chunks: Sequence[torch.nn.Module],
    optimizer: MegatronOptimizer | None,
    *,
    sharding_type: str = FULLY_RESHARDABLE,
) -> Path:
    """Write SAVE/iter_N, then move `latest` to it.  All ranks call it; a full disk leaves the one before usable."""

    def tensors(partial: Path) -> None:
        finish_param_gather(chunks, optimizer)
        together(lambda: _write_tensors(partial, chunks, optimizer, sharding_type))

    return _save(folder, completed(card, chunks, optimizer, sharding_type), tensors)


def save_made(folder: Path, card: RunCard, chunk: torch.nn.Module, make: stream.Make) -> Path:
    """`save` in one process, of a model on the meta device: `make` gives each weight when its turn comes."""
    content, sharding = content_metadata(FULLY_RESHARDABLE), _sharding_metadata(FULLY_RESHARDABLE)
    whole = completed(card, [chunk], None, FULLY_RESHARDABLE)
    return _save(folder, whole, lambda partial: stream.write(partial, chunk, make, content, sharding))


def _save(folder: Path, card: RunCard, tensors: Callable[[Path], None]) -> Path:
    """SAVE/iter_N.partial with what `tensors` writes into it, its card and hashes; then the rename and `latest`."""
    final = folder_of(folder, card.iteration)
    partial = partial_of(final)
    try:
        parallel.on_main(lambda: fresh_folder(partial))
        tensors(partial)
        seal(final, card, {})
    except OSError as error:
        raise not_written(final, error) from error
    return final


def completed(
    card: RunCard, chunks: Sequence[torch.nn.Module], optimizer: MegatronOptimizer | None, sharding_type: str
) -> RunCard:
    """The card with what the ranks know: the layout, and the form of the optimizer's state.  All ranks call it."""
    layout = layout_of(chunks, optimizer)
    kind = WEIGHTS if optimizer is None else sharding_type if layout.use_distributed_optimizer else ""
    return replace(card, world_size=parallel.place()[1], layout=layout, sharding_type=kind)


def seal(final: Path, card: RunCard, known: Mapping[str, str]) -> None:
    """Card, hashes and the rename of a checkpoint whose tensors are written.  OSError on all ranks."""
    partial = partial_of(final)
    parallel.on_main(lambda: write_card(partial, card))
    integrity.write(partial, known)
    parallel.on_main(lambda: commit(partial, final, card))


def not_written(final: Path, error: OSError) -> UserError:
    return UserError(final, f"the checkpoint was not written ({error})", mend(final.parent))


def newest_whole(save: Path, load: Path | None) -> tuple[Path | None, list[integrity.Damaged]]:
    """The checkpoint to go on from, its hashes verified, and the newer ones that were passed over as damaged.

    It is the newest below `save`; where there is none, that of `load`.  An iter_* folder is meant alone.  UserError
    where all are damaged.  All ranks call it.
    """
    newest = parallel.on_main(lambda: _newest(save, load))
    if isinstance(newest, UserError):
        raise newest
    if newest is None:
        return None, []
    others = [] if newest == load else parallel.on_main(lambda: older(newest))
    damaged = []
    for checkpoint in [newest, *others]:
        try:
            integrity.verify(checkpoint)
        except integrity.Damaged as error:
            damaged.append(error)
        else:
            return checkpoint, damaged
    first = damaged[0]
    raise UserError(first.where, first.problem, f"no whole checkpoint is older: {first.mend}") from first


def _newest(save: Path, load: Path | None) -> Path | UserError | None:
    """Rank 0 alone asks: on a network file system views differ for a while."""
    try:
        return latest(save) or (resolve(load) if load else None)
    except UserError as error:
        return error


def load(
    checkpoint: Path,
    chunks: Sequence[torch.nn.Module],
    optimizer: MegatronOptimizer | None,
    *,
    verified: bool = False,
) -> None:
    """Read weights, and the optimizer's state if one is given, into this rank's layout.

    Hashes first, unless they are `verified`; then whether this layout can read the optimizer's state.
    """
    if not verified:
        integrity.verify(checkpoint)
    card = RunCard.read(checkpoint)
    if optimizer is not None:
        card.check_loads(layout_of(chunks, optimizer), checkpoint)
    kind = DP_RESHARDABLE if card.sharding_type == DP_RESHARDABLE else FULLY_RESHARDABLE
    try:
        together(lambda: _read_tensors(checkpoint, chunks, optimizer, kind))
    except OSError as error:
        raise UserError(
            checkpoint, f"could not be read into this model ({error})", "use its own recipe, or another one"
        ) from error


def layout_of(chunks: Sequence[torch.nn.Module], optimizer: MegatronOptimizer | None) -> SavedLayout:
    """The layout of the model that stands here.  All ranks call it."""
    stage, layers = parallel.pipeline_parallel_rank(), tuple(len(unwrap(chunk).decoder.layers) for chunk in chunks)
    by_stage = dict(parallel.on_all(lambda: (stage, layers)))
    ddp = getattr(chunks[0], "ddp_config", None)
    return SavedLayout(
        tensor_model_parallel_size=mpu.get_tensor_model_parallel_world_size(),
        pipeline_model_parallel_size=mpu.get_pipeline_model_parallel_world_size(),
        context_parallel_size=mpu.get_context_parallel_world_size(),
        data_parallel_size=mpu.get_data_parallel_world_size(),
        layers=tuple(by_stage[stage] for stage in sorted(by_stage)),
        bucket_size=ddp.bucket_size if ddp else None,
        use_distributed_optimizer=bool(optimizer is not None and ddp and ddp.use_distributed_optimizer),
        bf16=next(unwrap(chunks[0]).parameters()).dtype == torch.bfloat16,
    )


def _read_tensors(
    checkpoint: Path, chunks: Sequence[torch.nn.Module], optimizer: MegatronOptimizer | None, sharding_type: str
) -> None:
    wanted = state_of(chunks, optimizer, sharding_type, is_loading=True)
    present = stream.names(checkpoint)
    for index in range(len(chunks)):
        _forgo_absent_states(wanted[_model_key(index, chunks)], present)
    state = dist_checkpointing.load(wanted, str(checkpoint))
    for index, chunk in enumerate(chunks):
        found = unwrap(chunk).load_state_dict(state[_model_key(index, chunks)], strict=False)
        unlike = [name for name in found.missing_keys if not name.endswith(EXTRA_STATE)] + found.unexpected_keys
        if unlike:
            raise ValueError(f"{unlike[0]} is there or here alone")
        for name, parameter in unwrap(chunk).named_parameters() if optimizer is None else ():
            keep_for_masters(parameter, state[_model_key(index, chunks)][name])
    if optimizer is not None:
        with torch.no_grad():  # of fp32 weights the masters are the leaves themselves
            optimizer.load_state_dict(state["optimizer"])


def _forgo_absent_states(wanted: dict[str, Any], present: AbstractSet[str]) -> None:
    """Do not ask for what Transformer Engine's modules keep beside their weights where the checkpoint has none.

    A checkpoint from local layers, or of `ipt convert import`, has none of its norms and its attention.  They hold FP8
    scales, made anew at the first step, or nothing.
    """
    for name, part in list(wanted.items()):
        if name.endswith(EXTRA_STATE) and isinstance(part, ShardedObject) and part.unique_key not in present:
            del wanted[name]


def _write_tensors(
    partial: Path, chunks: Sequence[torch.nn.Module], optimizer: MegatronOptimizer | None, sharding_type: str
) -> None:
    content = content_metadata(sharding_type)
    keep_results_here()
    with without_grad_buffers(chunks):  # the optimizer's state is gathered: twelve bytes a parameter more
        state = state_of(chunks, optimizer, sharding_type, is_loading=False)
        dist_checkpointing.save(state, str(partial), content_metadata=content, async_strategy="mcore")
        del state


def state_of(
    chunks: Sequence[torch.nn.Module],
    optimizer: MegatronOptimizer | None,
    sharding_type: str,
    *,
    is_loading: bool,
) -> dict[str, Any]:
    """The model's and the optimizer's sharded state, as megatron-core saves it or as a guide to what it loads."""
    metadata = _sharding_metadata(sharding_type)
    state: dict[str, Any] = {
        _model_key(index, chunks): unwrap(chunk).sharded_state_dict(metadata=metadata)
        for index, chunk in enumerate(chunks)
    }
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict(dict(state), is_loading=is_loading, metadata=metadata)
        if not is_loading and sharding_type == FULLY_RESHARDABLE:
            _free_gathered(state["optimizer"])
    return state


def content_metadata(sharding_type: str) -> dict[str, Any]:
    """How the optimizer is sharded, as it is stored."""
    return {
        "distrib_optim_sharding_type": sharding_type,
        "distrib_optim_fully_reshardable_mem_efficient": sharding_type == FULLY_RESHARDABLE,
        "chained_optim_avoid_prefix": True,
        "singleton_local_shards": False,
    }


def _sharding_metadata(sharding_type: str) -> dict[str, Any]:
    group = mpu.get_data_parallel_group(with_context_parallel=True)
    return {**content_metadata(sharding_type), "dp_cp_group": group}


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


def keep_results_here() -> None:
    """Collect the writers' results in this process; megatron-core starts another one for the queue they go through.

    Our writers are threads of this process.  torchrun sends SIGTERM to a worker's whole process group: the worker
    notes it and goes on to save, but the other process would be gone, and the save with it.  The queue is a new one at
    each save: what a failed one left is not taken for this one's.
    """
    filesystem_async._results_queue = queue.Queue()
