"""Process groups: who this rank is, and the groups it shares tensors, stages and data with."""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core import tensor_parallel
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException

from data_prep.errors import UserError
from megatron_ipt.mcore import device
from megatron_ipt.mcore.graph_rules import generators
from megatron_ipt.settings import TrainSettings

FAULTS = (OSError, ValueError, RuntimeError, KeyError, AssertionError, CheckpointingException, CheckpointException)
"""What reading and writing fails with; torch's CheckpointException is no Exception, and megatron-core asserts."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place in the world."""

    rank: int
    world_size: int
    data_parallel_rank: int
    data_parallel_size: int
    is_last_stage: bool

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@contextmanager
def distributed(timeout_minutes: int = 30) -> Iterator[None]:
    """torch.distributed for this process: torchrun's group, or a group of one where nobody started us."""
    timeout = datetime.timedelta(minutes=timeout_minutes)
    if "RANK" in os.environ:
        device.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(device.pick("backend"), timeout=timeout)
    else:
        device.set_device(0)
        dist.init_process_group(device.pick("backend"), store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def model_parallel(train: TrainSettings, *, with_gloo: bool = True) -> Iterator[Ranks]:
    """Megatron's groups for the layout in `train`; seeds each model-parallel rank's generators.

    `with_gloo`: a second set of groups on the CPU, through which a checkpoint's state is gathered.
    """
    world = dist.get_world_size()
    if world % train.model_parallel_size:
        context = " x context_parallel_size" if train.context_parallel_size > 1 else ""
        raise UserError(
            "train",
            f"tensor_model_parallel_size x pipeline_model_parallel_size{context} = {train.model_parallel_size} "
            f"does not divide the {world} process(es) that were started",
            "change the layout or the number of processes",
        )
    mpu.initialize_model_parallel(
        tensor_model_parallel_size=train.tensor_model_parallel_size,
        pipeline_model_parallel_size=train.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=train.virtual_pipeline_model_parallel_size,
        context_parallel_size=train.context_parallel_size,
        create_gloo_process_groups=with_gloo,
    )
    try:
        torch.manual_seed(train.seed)
        # that graphs need a GPU is told with all else this machine lacks
        how = generators(train, device.transformer_impl(train.transformer_impl)) if device.pick("graphs") else {}
        tensor_parallel.model_parallel_cuda_manual_seed(train.seed, force_reset_rng=True, **how)
        yield Ranks(
            rank=dist.get_rank(),
            world_size=world,
            data_parallel_rank=mpu.get_data_parallel_rank(),
            data_parallel_size=mpu.get_data_parallel_world_size(),
            is_last_stage=mpu.is_pipeline_last_stage(ignore_virtual=True),
        )
    finally:
        mpu.destroy_model_parallel()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of `values` over data- and context-parallel ranks, as the last pipeline stage has it, on every rank.

    A rank of another stage passes zeros.
    """
    dist.all_reduce(values, group=mpu.get_data_parallel_group(with_context_parallel=True))
    dist.broadcast(values, mpu.get_pipeline_model_parallel_last_rank(), group=mpu.get_pipeline_model_parallel_group())
    return values


def largest_over_ranks(value: float) -> float:
    """The largest `value` of all ranks."""
    tensor = torch.tensor(value, dtype=torch.float64, device=device.pick("device"))
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return float(tensor)


def store() -> dist.Store:
    """A connection of its own to the store through which the ranks found each other: a thread may wait on it."""
    store: Any = dist.distributed_c10d._get_default_store()
    clone: dist.Store = store.clone()
    return clone


def place() -> tuple[int, int]:
    """(rank, world size) of this process."""
    return dist.get_rank(), dist.get_world_size()


def on_main[T](action: Callable[[], T]) -> T:
    """What `action` gives on rank 0, on every rank.  If it fails there, OSError with its line on every rank."""
    return on_all(action if dist.get_rank() == 0 else lambda: None)[0]  # type: ignore[return-value]


def on_all[T](action: Callable[[], T]) -> list[T]:
    """What `action` gives on each rank, in their order, on every rank.  OSError with the first failure's line on all.

    What an action may fail with: `FAULTS`.
    """
    result: T | None = None
    line: str | None = None
    try:
        result = action()
    except FAULTS as error:
        line = last_line(error)
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (result, line))
    failure = next((line for _, line in told if line is not None), None)
    if failure is not None:
        raise OSError(failure)
    return [result for result, _ in told]


def last_line(error: BaseException) -> str:
    """The last line of an error's text: torch puts the cause there."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def share_tensor_parallel(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` as rank 0 of the tensor-parallel group has it, put in place on every rank of the group."""
    if tensor_parallel_size() > 1:
        dist.broadcast(tensor, mpu.get_tensor_model_parallel_src_rank(), group=mpu.get_tensor_model_parallel_group())
    return tensor


def gather_tensor_parallel(shard: torch.Tensor) -> torch.Tensor:
    """Tensor-parallel shards of the last dimension, joined on every rank of the group."""
    return tensor_parallel.gather_from_tensor_model_parallel_region(shard)


def pipeline_parallel_rank() -> int:
    return mpu.get_pipeline_model_parallel_rank()


def tensor_parallel_rank() -> int:
    return mpu.get_tensor_model_parallel_rank()


def tensor_parallel_size() -> int:
    return mpu.get_tensor_model_parallel_world_size()
