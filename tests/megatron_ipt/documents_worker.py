"""On several ranks: logits, losses and gradients under several settings, and several training runs.

    torchrun documents_worker.py RECIPE OUT.pt '{"name": ["step", ["train.context_parallel_size=2", ...]], ...}'

OUT.pt, written by rank 0, has of each `step`: `logits` [samples, sequence, vocabulary] of the first micro batch, and
`gradients` (by parameter), `loss`, `tokens` and `by_source` of the first global batch; of each `run` the rows of
metrics.jsonl.
"""

from __future__ import annotations

from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import torch
from recorded import run_jobs, trained

from megatron_ipt.recipe import load_recipe, section


def step(recipe: Path, overrides: list[str]) -> dict[str, Any]:
    from megatron_ipt.architecture import padded_vocab_size
    from megatron_ipt.convert.families import read_architecture
    from megatron_ipt.convert.load_hf import load_hf
    from megatron_ipt.data.loader import indices, micro_batches
    from megatron_ipt.data.stream import BlendStream
    from megatron_ipt.mcore import config as configs
    from megatron_ipt.mcore import model as models
    from megatron_ipt.mcore import parallel

    settings = load_recipe(recipe, overrides)
    train, model = section(settings, "train"), section(settings, "model")
    assert train.blend is not None and model.load_hf is not None
    architecture = read_architecture(model.load_hf)
    vocab_size = padded_vocab_size(architecture, model, train)
    stream = BlendStream(train.blend, reset_position_ids=train.reset_position_ids)
    with parallel.model_parallel(train) as ranks:
        config = configs.transformer_config(architecture, train)
        chunks = models.build(architecture, config, train, vocab_size)
        load_hf(chunks, model.load_hf, architecture)
        wrapped = models.wrap(chunks, config, train)
        first = next(micro_batches(stream.sample, range(train.micro_batch_size), train.micro_batch_size, "cpu"))
        logits = models.logits(chunks, first, train)
        mine = indices(0, train.global_batch_size, ranks.data_parallel_rank, ranks.data_parallel_size)
        batches = list(micro_batches(stream.sample, mine, train.micro_batch_size, "cpu"))
        for chunk in wrapped:
            chunk.zero_grad_buffer()
        sources = len(stream.blend.sources)
        losses = models.run_batch(wrapped, partial(iter, batches), train, backward=True, sources=sources)
        gradients = {name: weight.main_grad.clone() for name, weight in models.named_parameters(chunks)}
        found = {
            "loss": losses.mean,
            "tokens": losses.tokens,
            "by_source": [astuple(part) for part in losses.by_source],
        }
        return {**found, "logits": logits, "gradients": gradients}


def step_or_run(recipe: Path, job: tuple[str, list[str]]) -> Any:
    kind, overrides = job
    return step(recipe, overrides) if kind == "step" else trained(recipe, overrides)


if __name__ == "__main__":
    run_jobs(step_or_run, write=torch.save)
