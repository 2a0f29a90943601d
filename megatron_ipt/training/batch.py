"""One global batch of a run: its losses and gradients, with FP8 or without, and where it is due without FP8 beside."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from megatron_ipt.mcore import model as models
from megatron_ipt.mcore.low_precision import full_precision
from megatron_ipt.mcore.model import Batch, Losses
from megatron_ipt.training.run import Run
from megatron_ipt.training.shadow import relative

logger = logging.getLogger(__name__)


def forward_backward(run: Run, batches: Sequence[Batch], global_batch_size: int) -> Losses:
    """The losses of the batch of the step in hand, the same on every rank; gradients stay in the chunks' buffers."""
    iteration = run.iteration + 1
    losses = _losses(run, batches, global_batch_size, backward=True, full=run.shadow.is_full(iteration))
    if run.shadow.is_due(iteration, losses.tokens):
        full = _losses(run, batches, global_batch_size, backward=False, full=True)
        models.expect_update(run.chunks)
        _compare(run, iteration, losses.mean, full.mean)
    return losses


def _losses(run: Run, batches: Sequence[Batch], global_batch_size: int, *, backward: bool, full: bool) -> Losses:
    """`batches`: this rank's micro batches.  `full`: without FP8."""
    with full_precision(run.chunks, wanted=full):
        return models.run_batch(
            run.chunks,
            partial(run.watchdog.counted, batches),
            run.train,
            backward=backward,
            sources=len(run.stream.blend.sources),
            global_batch_size=global_batch_size,
        )


def _compare(run: Run, iteration: int, low: float, full: float) -> None:
    """Writes both losses, and says from which step on FP8 is left if they differ too much; all ranks find the same."""
    difference = relative(low, full)
    before, run.shadow = run.shadow, run.shadow.after(iteration, difference)
    row = {"loss": low, "full_loss": full, "difference": difference, "full_until": run.shadow.full_until}
    run.metrics.write("shadow", iteration, **row)
    if run.shadow != before:
        told = "iteration %d: FP8's loss %.4f lies %.2g of it from %.4f without FP8: none in iterations %d to %d"
        logger.warning(told, iteration, low, abs(difference), full, iteration + 1, run.shadow.full_until)
