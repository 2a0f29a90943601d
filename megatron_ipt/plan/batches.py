"""The batches of a run, as they grow: what a step of each takes.  Pure."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ipt.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class Batch:
    """The batch of `steps` steps from `first_sample` on: `micro_batches` on each replica, `bubble` of compute time."""

    first_sample: int
    samples: int
    steps: int
    micro_batches: int
    bubble: float
    tokens: int


def batches(train: TrainSettings, replicas: int) -> tuple[Batch, ...]:
    """The batches of the run, those of a ramp in their order."""
    found, sizes, begun = [], train.batch_sizes, 0
    consumed = sizes.consumed_after(train.train_iters)
    for number, (first, samples) in enumerate(sizes.stretches):
        following = sizes.stretches[number + 1 :]
        until = min(following[0][0], consumed) if following else consumed
        steps = max(0, -(-(until - begun) // samples))
        micro_batches = samples // (train.micro_batch_size * replicas)
        passes = micro_batches * (train.virtual_pipeline_model_parallel_size or 1)
        bubble = (train.pipeline_model_parallel_size - 1) / passes
        found.append(Batch(first, samples, steps, micro_batches, bubble, samples * train.seq_length))
        begun += steps * samples
    return tuple(found)
