"""On several ranks: several training runs one after another; what each of their steps was really trained on.

    torchrun draws_worker.py RECIPE OUT.json '{"name": ["train.save=...", ...], ...}'

OUT.json has of each name its steps in order, and of each step one [source, hash of the input tokens] a sample, sorted:
taken where a micro batch enters the model, so that whatever reads ahead or distributes samples is included.  A run that
is refused has its error instead.  Two overrides are faults: `astray` reads sample 0 in the place of every other,
`dies_in=N` kills the last rank in the middle of step N.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import xxhash
from recorded import run_jobs

from megatron_ipt.recipe import load_recipe


def run(recipe: Path, overrides: list[str]) -> Any:
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state as mpu

    from megatron_ipt import pretrain
    from megatron_ipt.data import loader
    from megatron_ipt.mcore import model as models

    faults = [item for item in overrides if "." not in item]
    dies_in = next((int(item.partition("=")[2]) for item in faults if item.startswith("dies_in=")), None)
    steps: list[list[tuple[int, str]]] = []
    training_step, forward_step = pretrain.training_step, models.forward_step

    def begin(*arguments: Any) -> Any:
        steps.append([])
        return training_step(*arguments)

    def forward(train: Any, sources: int, batches: Any, model: Any) -> Any:
        batch = next(batches)
        # one rank of a replica tells: the others have the same samples
        first = mpu.get_tensor_model_parallel_rank() == mpu.get_context_parallel_rank() == 0
        if torch.is_grad_enabled() and first and mpu.is_pipeline_first_stage():
            for source, tokens in zip(batch["source_index"].tolist(), batch["tokens"], strict=True):
                steps[-1].append((source, xxhash.xxh3_64_hexdigest(tokens.numpy().tobytes())))
        if len(steps) == dies_in and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward_step(train, sources, iter([batch]), model)

    def read_step(sample: Any, *rest: Any) -> Any:
        return read(lambda _: sample(0), *rest)

    read = loader.read_step
    if "astray" in faults:
        loader.read_step = read_step
    pretrain.training_step, models.forward_step = begin, forward
    try:
        pretrain.pretrain(load_recipe(recipe, [item for item in overrides if item not in faults]))
    finally:
        pretrain.training_step, models.forward_step, loader.read_step = training_step, forward_step, read
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, steps)
    return [sorted(sample for part in parts for sample in part) for parts in zip(*told, strict=True)]


if __name__ == "__main__":
    run_jobs(run)
