"""On several ranks: several training runs in one process group, some with a fault in the middle.

    torchrun loop_worker.py RECIPE OUT.json '{"name": ["train.lr=1e-3", "nan_in=3", ...], ...}'

Faults: `nan_in=N` the last rank alone has a NaN among its losses in step N, `nan_from=N` in every step from N on;
`loud_in=N` the gradient of step N is fifty times itself; `unlabelled=A-B` no label of samples [A, B) counts;
`doubted_in=N` the last rank alone calls step N a spike.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from recorded import run_jobs, trained

from megatron_ipt import pretrain
from megatron_ipt.data.stream import BlendStream, Sample
from megatron_ipt.mcore import model as models
from megatron_ipt.training.spikes import SpikeRule, Verdict


def unlabelled(sample: Sample, where: str, index: int) -> Sample:
    first, _, stop = where.partition("-")
    inside = int(first) <= index < int(stop)
    return replace(sample, loss_mask=np.zeros_like(sample.loss_mask)) if inside else sample


@contextmanager
def faulty(faults: dict[str, str]) -> Iterator[None]:
    sample, step, sum_of_losses = BlendStream.sample, pretrain.training_step, models.sum_of_losses
    once, ever = int(faults.get("nan_in", 0)), int(faults.get("nan_from", 10**9))
    loud, doubted = int(faults.get("loud_in", 0)), int(faults.get("doubted_in", 0))
    judge = SpikeRule.judge
    iteration = 0

    def counted_step(run: Any, loader: Any) -> Any:
        nonlocal iteration
        iteration = run.iteration + 1
        modes = {torch.are_deterministic_algorithms_enabled(), run.chunks[0].config.deterministic_mode}
        assert modes == {run.train.deterministic_mode}
        return step(run, loader)

    def changed_sum(*arguments: Any) -> Any:
        total, count, report = sum_of_losses(*arguments)
        here = dist.get_rank() == dist.get_world_size() - 1 and (iteration == once or iteration >= ever)
        return total * (float("nan") if here else 50.0 if iteration == loud else 1.0), count, report

    def changed_judge(rule: SpikeRule, *figures: Any) -> Verdict:
        alone = iteration == doubted and dist.get_rank() == dist.get_world_size() - 1
        return Verdict.SPIKE if alone else judge(rule, *figures)

    def changed_sample(stream: BlendStream, index: int) -> Sample:
        return unlabelled(sample(stream, index), faults.get("unlabelled", "0-0"), index)

    BlendStream.sample = functools.update_wrapper(changed_sample, sample)  # type: ignore[method-assign]
    pretrain.training_step, models.sum_of_losses = counted_step, changed_sum
    SpikeRule.judge = changed_judge  # type: ignore[method-assign]
    try:
        yield
    finally:
        BlendStream.sample = sample  # type: ignore[method-assign]
        pretrain.training_step, models.sum_of_losses = step, sum_of_losses
        SpikeRule.judge = judge  # type: ignore[method-assign]


def run(recipe: Path, overrides: list[str]) -> Any:
    faults = dict(
        item.split("=", 1) for item in overrides if "." not in item.partition("=")[0] and item[:6] != "output"
    )
    settings = [item for item in overrides if item.partition("=")[0] not in faults]
    with faulty(faults):
        return trained(recipe, settings)


if __name__ == "__main__":
    run_jobs(run)
