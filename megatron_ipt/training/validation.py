"""Loss and bits per byte of held-out text under the live model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from megatron_ipt.data.loader import indices, micro_batches
from megatron_ipt.data.stream import HeldOut, Sample
from megatron_ipt.mcore import device
from megatron_ipt.mcore import model as models
from megatron_ipt.mcore.low_precision import full_precision
from megatron_ipt.mcore.parallel import Ranks
from megatron_ipt.settings import TrainSettings
from megatron_ipt.training.run import Run


@dataclass(frozen=True, slots=True)
class Validation:
    """`loss` in nats a token over `tokens`; bits per byte by the tokens a byte of the whole dataset."""

    name: str
    loss: float
    bits_per_byte: float
    tokens: int


def validate_and_write(run: Run) -> None:
    """A line of metrics for each held-out set, in the precision of the next step; all ranks call it."""
    run.watchdog.free()
    # a captured layer that is not trained gathers nothing, and weights in MXFP8 are gathered from the gradients' buffer
    models.finish_param_gather(run.chunks, run.optimizer)
    with full_precision(run.chunks, wanted=run.shadow.is_full(run.iteration + 1)):
        for held_out in run.held_out:
            found = validate(run.chunks, held_out, run.train, run.ranks)
            run.metrics.write("validation", run.iteration, **asdict(found))


def validate(chunks: Sequence[torch.nn.Module], held_out: HeldOut, train: TrainSettings, ranks: Ranks) -> Validation:
    """Score the first eval_iters global batches of `held_out`, each sequence once; all ranks call it."""
    batches = min(train.eval_iters, -(-len(held_out) // train.global_batch_size))
    for chunk in chunks:
        chunk.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in range(batches):
            mine = indices(
                batch * train.global_batch_size,
                train.global_batch_size,
                ranks.data_parallel_rank,
                ranks.data_parallel_size,
            )
            found = models.run_batch(
                chunks,
                lambda mine=mine: micro_batches(  # type: ignore[misc]
                    lambda index: _sample(held_out, index), mine, train.micro_batch_size, device.pick("device")
                ),
                train,
                backward=False,
            )
            total, count = total + found.mean * found.tokens, count + found.tokens
    for chunk in chunks:
        chunk.train()
    loss = total / max(count, 1)
    tokens_a_byte = held_out.tokens / max(held_out.text_bytes, 1)
    return Validation(held_out.name, loss, loss / math.log(2) * tokens_a_byte, count)


def _sample(held_out: HeldOut, index: int) -> Sample:
    """Sequence `index`, or, past the end, one that is masked whole (a batch is always full)."""
    if index < len(held_out):
        return held_out.sample(index)
    first = held_out.sample(0)
    return replace(first, loss_mask=np.zeros_like(first.loss_mask))
