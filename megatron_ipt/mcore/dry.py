"""One rank of a model without its memory: a fake process group and the meta device.

Configuration and layout are those of a run.  The layers are the local ones even where Transformer Engine's would
train: they hold the same weights and, unlike those, allocate nothing here.
"""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_ipt.architecture import Architecture
from megatron_ipt.mcore import config as configs
from megatron_ipt.mcore import model as models
from megatron_ipt.mcore import parallel
from megatron_ipt.mcore.plain import plain
from megatron_ipt.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class Parameter:
    """A weight as one rank holds it.  `split`: tensor-parallel ranks hold parts of it; else each holds the whole."""

    name: str
    shape: tuple[int, ...]
    split: bool


@dataclass(frozen=True, slots=True)
class RankModel:
    """What one rank builds."""

    pipeline_rank: int
    chunks: int
    parameters: tuple[Parameter, ...]


@contextmanager
def fake_group(rank: int, world_size: int) -> Iterator[None]:
    """A process group of `world_size` in which this process is `rank` and nobody answers."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def check_settings(architecture: Architecture, train: TrainSettings) -> None:
    """UserError for a setting that megatron-core's configurations refuse; the same for every rank."""
    configs.transformer_config(architecture, train)
    configs.optimizer_config(train)
    configs.ddp_config(train)


def build_rank(
    architecture: Architecture, train: TrainSettings, vocab_size: int, rank: int, world_size: int
) -> RankModel:
    """What `rank` of `world_size` holds, built on the meta device."""
    with fake_group(rank, world_size), parallel.model_parallel(train, with_gloo=False):
        local = plain(train).model_copy(update={"transformer_impl": "local"})
        config = configs.transformer_config(architecture, local)
        chunks = models.build(architecture, config, local, vocab_size, place="meta")
        found = tuple(
            Parameter(name, tuple(weight.shape), bool(getattr(weight, "tensor_model_parallel", False)))
            for name, weight in models.named_parameters(chunks)
        )
        return RankModel(
            pipeline_rank=parallel.pipeline_parallel_rank(),
            chunks=len(chunks),
            parameters=found,
        )
