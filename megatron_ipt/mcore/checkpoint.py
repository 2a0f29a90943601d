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

import json
import os
import queue
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from megatron_ipt.architecture import Architecture
from megatron_ipt.mcore import integrity, parallel
from megatron_ipt.mcore.model import finish_param_gather, unwrap, without_grad_buffers

LATEST = "latest_checkpointed_iteration.txt"
CARD = "run_card.json"
CARD_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class RunCard:
    """What a checkpoint is.  `consumed_samples` with `blend_hash` is the whole data position.

    `spikes` is what the spike rule remembers (training/spikes.py); empty in cards of before.
    """

    iteration: int
    consumed_samples: int
    architecture: Architecture
    padded_vocab_size: int
    blend_hash: str
    load_hf: str
    versions: dict[str, str]
    recipe: dict[str, Any]
    spikes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"format_version": CARD_FORMAT_VERSION, **plain, "architecture": self.architecture.to_json()}

    @classmethod
    def read(cls, checkpoint: Path) -> RunCard:
        """The card of an `iter_*` folder; UserError where there is none or it is of another format."""
        path = checkpoint / CARD
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(
                checkpoint, f"not a checkpoint of ours ({CARD} is missing)", "give an iter_* folder"
            ) from error
        except ValueError as error:
            raise UserError(path, f"not JSON ({error})", "use another checkpoint") from error
        if row.pop("format_version", None) != CARD_FORMAT_VERSION:
            raise UserError(path, f"not format version {CARD_FORMAT_VERSION}", "use the version of ipt that wrote it")
        return cls(**{**row, "architecture": Architecture(**row["architecture"])})


def latest(folder: Path) -> Path | None:
    """The newest finished checkpoint under `folder`, or None; UserError if the one that `latest` names is gone."""
    tracker = folder / LATEST
    if not tracker.exists():
        return None
    written = tracker.read_text(encoding="utf-8").strip()
    if not written.isdigit():
        raise UserError(tracker, f"holds '{written}', not an iteration", "write the number of an iter_* folder into it")
    checkpoint = folder / f"iter_{int(written):07d}"
    if not checkpoint.is_dir() and _aside(checkpoint).is_dir():
        return _aside(checkpoint)
    if not checkpoint.is_dir():
        raise UserError(
            tracker, f"names {checkpoint.name}, which is not there", "restore it or write another iteration"
        )
    return checkpoint


def resolve(path: Path) -> Path:
    """`path` itself if it is an iter_* folder, else the newest checkpoint below it."""
    found = path if (path / CARD).exists() else latest(path)
    if found is None:
        raise UserError(path, "no checkpoint there", f"give an iter_* folder or one with {LATEST}")
    return found


def save(folder: Path, card: RunCard, chunks: Sequence[torch.nn.Module], optimizer: MegatronOptimizer | None) -> Path:
    """Write SAVE/iter_N, then move `latest` to it.  All ranks call it; a full disk leaves the one before usable."""
    final = folder / f"iter_{card.iteration:07d}"
    partial = final.with_name(final.name + ".partial")
    try:
        parallel.on_main(lambda: _fresh_folder(partial))
        finish_param_gather(chunks, optimizer)
        parallel.on_all(lambda: _write_tensors(partial, chunks, optimizer))
        parallel.on_main(lambda: _write_card(partial, card))
        integrity.write(partial)
        parallel.on_main(lambda: _commit(partial, final, card))
    except OSError as error:
        raise UserError(final, f"the checkpoint was not written ({error})", _mend(folder)) from error
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


def _fresh_folder(partial: Path) -> None:
    """An empty folder for the checkpoint to come; what an interrupted save left is removed."""
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)


def _write_card(partial: Path, card: RunCard) -> None:
    (partial / CARD).write_text(json.dumps(card.to_json(), indent=2), encoding="utf-8")


def _commit(partial: Path, final: Path, card: RunCard) -> None:
    """The rename, then `latest`; each is on the disk before the next begins.

    Where an iteration is written anew, the one before stands aside until then: `latest` finds it there.
    """
    before = _aside(final)
    for path in partial.iterdir():
        _to_disk(path)
    _to_disk(partial)
    if final.exists():
        shutil.rmtree(before, ignore_errors=True)
        final.rename(before)
    partial.rename(final)
    _to_disk(final.parent)
    tracker = final.parent / LATEST
    waiting = tracker.with_suffix(".partial")
    waiting.write_text(str(card.iteration), encoding="utf-8")
    _to_disk(waiting)
    waiting.replace(tracker)
    _to_disk(final.parent)
    shutil.rmtree(before, ignore_errors=True)


def _aside(final: Path) -> Path:
    """Where a checkpoint stands while its iteration is written anew."""
    return final.with_name(final.name + ".before")


def _to_disk(path: Path) -> None:
    """fsync of a file or a folder: without it a power failure can keep a rename and lose what was renamed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mend(folder: Path) -> str:
    before = latest(folder)
    kept = f"{before.name} is untouched" if before else "nothing was there before"
    free = shutil.disk_usage(folder).free / 2**30
    return f"{free:.1f} GiB are free there: make room if that is too little, and start again; {kept}"
