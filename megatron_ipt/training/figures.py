"""The figures of one step, as metrics.jsonl has them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_ipt.training import flops
from megatron_ipt.training.metrics import source_figures
from megatron_ipt.training.spikes import Verdict

if TYPE_CHECKING:
    from megatron_ipt.mcore.model import Losses
    from megatron_ipt.training.run import Run


@dataclass(frozen=True, slots=True)
class Step:
    """What one step was: its samples, the rate its update had or would have had, and how long it took [s]."""

    iteration: int
    samples: range
    losses: Losses
    lr: float
    norm: float
    verdict: Verdict
    seconds: float


def figures(run: Run, step: Step, waited: float) -> dict[str, Any]:
    """One line, but for its kind and what was drawn since the line before.

    All ranks call it: some figures are the largest of all.  A batch without a label that counts has no loss (NaN).
    """
    from megatron_ipt.mcore import device, parallel

    tokens = len(step.samples) * run.train.seq_length
    return {
        "consumed_samples": step.samples.stop,
        "consumed_tokens": step.samples.stop * run.train.seq_length,
        "loss": step.losses.mean if step.losses.tokens else math.nan,
        "loss_tokens": step.losses.tokens,
        "lr": step.lr,
        "grad_norm": step.norm,
        "skipped": run.spikes.counts(),
        "sources": source_figures(run.stream.blend, step.samples.stop, step.losses.by_source),
        "step_seconds": step.seconds,
        "data_seconds": parallel.largest_over_ranks(waited),
        "tokens_per_second": tokens / step.seconds,
        **flops.rates(run.flops, tokens, step.seconds, run.ranks.world_size),
        "memory_bytes": int(parallel.largest_over_ranks(device.memory_bytes())),
    }
