"""The ranks of a layout: what each builds, and the bytes that stand on it all the time.

Static bytes of a parameter: the weight (2 in bf16, else 4), its gradient in fp32 (4, in bf16 2), and Adam's state (the
two moments, and under bf16 the master weight: 12 in fp32, else 8; optimizer_states.py), the last divided by the
data-parallel size times the context-parallel one under the distributed optimizer.  Activations, communication buffers
and the libraries' own memory come on top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_ipt.architecture import Architecture, check_layout, padded_vocab_size, stage_layers
from megatron_ipt.mcore.dry import RankModel, build_rank, check_settings
from megatron_ipt.mcore.optimizer_states import gradient_bytes, state_bytes
from megatron_ipt.plan.activations import kept_bytes
from megatron_ipt.plan.batches import Batch, batches
from megatron_ipt.settings import ModelSettings, TrainSettings


@dataclass(frozen=True, slots=True)
class Stage:
    """A pipeline stage: each of its tensor-parallel ranks holds `parameters` weights and `static_bytes` bytes.

    `activation_bytes` come on top between forward and backward, at the largest batch of the run.
    """

    pipeline_rank: int
    chunks: int
    layers: int
    parameters: int
    static_bytes: float
    activation_bytes: int


@dataclass(frozen=True, slots=True)
class Gathering:
    """What a save gathers in the memory of the fullest node: `ranks` of its ranks hold `bytes` together.

    A gathering rank holds masters and moments of its whole part of the model, `rank_bytes` at most, in fp32.
    """

    nodes: int
    ranks: int
    bytes: int
    rank_bytes: int


@dataclass(frozen=True, slots=True)
class LayoutPlan:
    """A layout on `world_size` ranks.  `parameters` counts once what tensor-parallel ranks replicate.

    `batches` are those of the run in their order, one where there is no ramp.
    """

    world_size: int
    data_parallel_size: int
    padded_vocab_size: int
    parameters: int
    batches: tuple[Batch, ...]
    checkpoint_bytes: int
    gathering: Gathering | None
    copied_bytes: int | None
    stages: tuple[Stage, ...]
    ranks_built: int


def plan_layout(architecture: Architecture, model: ModelSettings, train: TrainSettings, world_size: int) -> LayoutPlan:
    """Build every model-parallel rank of one replica without memory; UserError for a layout that cannot be."""
    check_layout(architecture, train, world_size)
    check_settings(architecture, train)
    vocab_size = padded_vocab_size(architecture, model, train)
    tensor, pipeline = train.tensor_model_parallel_size, train.pipeline_model_parallel_size
    copies = world_size // (tensor * pipeline)  # of each weight: context-parallel ranks hold one each
    replicas = copies // train.context_parallel_size
    built = [
        [build_rank(architecture, train, vocab_size, first + shard, world_size) for shard in range(tensor)]
        for first in range(0, world_size, copies * tensor)
    ]
    of_run = batches(train, replicas)
    most = max(batch.micro_batches for batch in of_run)
    stages = tuple(_stage(ranks, architecture, train, copies, most) for ranks in built)
    parameters = sum(_counted_once(ranks) for ranks in built) - _tied_copy(architecture, vocab_size, pipeline)
    return LayoutPlan(
        world_size=world_size,
        data_parallel_size=replicas,
        padded_vocab_size=vocab_size,
        parameters=parameters,
        batches=of_run,
        checkpoint_bytes=parameters * _saved_bytes(train),
        gathering=gathering([stage.parameters for stage in stages], train, world_size),
        copied_bytes=copied_bytes([stage.parameters for stage in stages], train, world_size),
        stages=stages,
        ranks_built=sum(map(len, built)),
    )


def static_bytes(parameters: int, matrices: int, train: TrainSettings, copies: int) -> float:
    """Bytes that `parameters` weights, `matrices` of them in matrices of layers, take on a rank all the time.

    `copies` is the number of ranks that hold the same weights.
    """
    weight = 2 if train.bf16 else 4
    # with fp8_param the weight itself stands in FP8, twice: there is no other
    cached = train.transformer_config.get("fp8") and not train.transformer_config.get("fp8_param")
    state_here = state_bytes(train) / (copies if train.use_distributed_optimizer else 1)
    return parameters * (weight + gradient_bytes(train) + state_here) + (2 * matrices if cached else 0)


def gathering(parameters: Sequence[int], train: TrainSettings, world_size: int) -> Gathering | None:
    """Of `parameters` by stage; None without the distributed optimizer, whose state alone a save gathers.

    Ranks count through tensor, context, data, then pipeline parallelism (Megatron's order), and the first copy of each
    part gathers it.  So with 4 x 2 ranks a stage a node of 8 holds one stage, and each node has gathering ranks.
    """
    if not train.use_distributed_optimizer:
        return None
    tensor, node = train.tensor_model_parallel_size, train.nproc_per_node
    copies = world_size // (tensor * len(parameters))
    on_node: dict[int, list[int]] = {}
    for rank in range(world_size):
        if rank // tensor % copies == 0:
            on_node.setdefault(rank // node, []).append(12 * parameters[rank // (tensor * copies)])
    fullest = max(on_node.values(), key=sum)
    return Gathering(len(on_node), len(fullest), sum(fullest), 12 * max(parameters))


def copied_bytes(parameters: Sequence[int], train: TrainSettings, world_size: int) -> int | None:
    """Host memory of the fullest node that a save behind training holds until it is written; None without such saves.

    Of `parameters` by stage the first copy writes the weights, and Adam's state too unless each copy of the distributed
    optimizer writes its own part (`dp_reshardable`).
    """
    if not train.async_save:
        return None
    tensor, weight = train.tensor_model_parallel_size, 2 if train.bf16 else 4
    copies = world_size // (tensor * len(parameters))
    spread = train.use_distributed_optimizer and not train.dist_ckpt_optim_fully_reshardable
    state = _saved_bytes(train) - weight
    on_node: dict[int, int] = {}
    for rank in range(world_size):
        first, count = rank // tensor % copies == 0, parameters[rank // (tensor * copies)]
        written = count * weight * first + (count * state // copies if spread else count * state * first)
        on_node[rank // train.nproc_per_node] = on_node.get(rank // train.nproc_per_node, 0) + written
    return max(on_node.values())


def _saved_bytes(train: TrainSettings) -> int:
    """Bytes a checkpoint has of a weight, at most with short states; the distributed optimizer has fp32 masters too."""
    return (2 if train.bf16 else 4) + (12 if train.bf16 or train.use_distributed_optimizer else 8)


def _stage(
    ranks: list[RankModel], architecture: Architecture, train: TrainSettings, copies: int, micro_batches: int
) -> Stage:
    counts = {sum(math.prod(weight.shape) for weight in rank.parameters) for rank in ranks}
    assert len(counts) == 1, f"tensor-parallel ranks of one stage differ: {counts}"
    (count,) = counts
    first = ranks[0]
    of_layers = [weight for weight in first.parameters if weight.name.startswith("decoder.layers.")]
    chunks = stage_layers(architecture.num_layers, train)[first.pipeline_rank]
    layers = len({weight.name.split(".")[2] for weight in of_layers})
    assert layers == sum(chunks), f"built {layers} layers where {chunks} belong"
    matrices = sum(math.prod(weight.shape) for weight in of_layers if len(weight.shape) > 1)
    return Stage(
        first.pipeline_rank,
        first.chunks,
        layers,
        count,
        static_bytes(count, matrices, train, copies),
        kept_bytes(architecture, train, first.pipeline_rank, chunks, micro_batches),
    )


def _counted_once(ranks: list[RankModel]) -> int:
    """Weights of a stage: the parts of every rank, and one copy of what each rank holds whole."""
    split = sum(math.prod(weight.shape) for rank in ranks for weight in rank.parameters if weight.split)
    return split + sum(math.prod(weight.shape) for weight in ranks[0].parameters if not weight.split)


def _tied_copy(architecture: Architecture, vocab_size: int, pipeline: int) -> int:
    """Tied embeddings stand on the first and on the last stage."""
    tied = architecture.share_embeddings_and_output_weights and pipeline > 1
    return vocab_size * architecture.hidden_size if tied else 0
