"""The ranks of a layout: what each builds, and the bytes that stand on it all the time.

Static bytes of a parameter: the weight (2 in bf16, else 4), its gradient in fp32 (4), and Adam's state in fp32 (the
two moments, and under bf16 the master weight: 12, else 8), the last divided by the data-parallel size under the
distributed optimizer.  Activations, communication buffers and the libraries' own memory come on top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_ipt.architecture import Architecture, check_layout, padded_vocab_size
from megatron_ipt.mcore.dry import RankModel, build_rank, check_settings
from megatron_ipt.recipe import ModelSettings, TrainSettings


@dataclass(frozen=True, slots=True)
class Stage:
    """A pipeline stage: each of its tensor-parallel ranks holds `parameters` weights and `static_bytes` bytes."""

    pipeline_rank: int
    chunks: int
    layers: int
    parameters: int
    static_bytes: float


@dataclass(frozen=True, slots=True)
class LayoutPlan:
    """A layout on `world_size` ranks.  `parameters` counts once what tensor-parallel ranks replicate."""

    world_size: int
    data_parallel_size: int
    padded_vocab_size: int
    parameters: int
    micro_batches: int
    bubble: float
    tokens_a_step: int
    gathered_bytes: float
    stages: tuple[Stage, ...]
    ranks_built: int


def plan_layout(architecture: Architecture, model: ModelSettings, train: TrainSettings, world_size: int) -> LayoutPlan:
    """Build every model-parallel rank of one replica without memory; UserError for a layout that cannot be."""
    check_layout(architecture, train, world_size)
    check_settings(architecture, train)
    vocab_size = padded_vocab_size(architecture, model, train)
    tensor, pipeline = train.tensor_model_parallel_size, train.pipeline_model_parallel_size
    replicas = world_size // (tensor * pipeline)
    built = [
        [build_rank(architecture, train, vocab_size, first + shard, world_size) for shard in range(tensor)]
        for first in range(0, world_size, replicas * tensor)
    ]
    stages = tuple(_stage(ranks, train, replicas) for ranks in built)
    micro_batches = train.global_batch_size // (train.micro_batch_size * replicas)
    return LayoutPlan(
        world_size=world_size,
        data_parallel_size=replicas,
        padded_vocab_size=vocab_size,
        parameters=sum(_counted_once(ranks) for ranks in built) - _tied_copy(architecture, vocab_size, pipeline),
        micro_batches=micro_batches,
        bubble=(pipeline - 1) / (micro_batches * (train.virtual_pipeline_model_parallel_size or 1)),
        tokens_a_step=train.global_batch_size * train.seq_length,
        gathered_bytes=max(stage.parameters for stage in stages) * (12.0 if train.bf16 else 8.0),
        stages=stages,
        ranks_built=sum(map(len, built)),
    )


def static_bytes(parameters: int, train: TrainSettings, replicas: int) -> float:
    """Bytes that `parameters` weights take on a rank all the time."""
    weight, state = (2, 12) if train.bf16 else (4, 8)
    return parameters * (weight + 4 + state / (replicas if train.use_distributed_optimizer else 1))


def _stage(ranks: list[RankModel], train: TrainSettings, replicas: int) -> Stage:
    counts = {sum(math.prod(weight.shape) for weight in rank.parameters) for rank in ranks}
    assert len(counts) == 1, f"tensor-parallel ranks of one stage differ: {counts}"
    (count,) = counts
    first = ranks[0]
    layers = {weight.name.split(".")[2] for weight in first.parameters if weight.name.startswith("decoder.layers.")}
    return Stage(first.pipeline_rank, first.chunks, len(layers), count, static_bytes(count, train, replicas))


def _counted_once(ranks: list[RankModel]) -> int:
    """Weights of a stage: the parts of every rank, and one copy of what each rank holds whole."""
    split = sum(math.prod(weight.shape) for rank in ranks for weight in rank.parameters if weight.split)
    return split + sum(math.prod(weight.shape) for weight in ranks[0].parameters if not weight.split)


def _tied_copy(architecture: Architecture, vocab_size: int, pipeline: int) -> int:
    """Tied embeddings stand on the first and on the last stage."""
    tied = architecture.share_embeddings_and_output_weights and pipeline > 1
    return vocab_size * architecture.hidden_size if tied else 0
