"""A batch without FP8 beside the same batch with it, before the update that follows from it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from megatron_ipt.mcore import low_precision
from megatron_ipt.mcore import model as models
from megatron_ipt.mcore.model import Batch, Losses
from megatron_ipt.training.run import Run
from megatron_ipt.training.shadow import relative

logger = logging.getLogger(__name__)


def watch(run: Run, batches: Sequence[Batch], losses: Losses, global_batch_size: int) -> None:
    """Writes both losses of the step in hand, and says from which step on FP8 is left if they differ too much.

    `losses` are those of the batch with FP8.  All ranks call it and come to the same end.
    """
    iteration = run.iteration + 1
    with low_precision.full_precision(run.chunks):
        full = models.run_batch(
            run.chunks,
            partial(run.watchdog.counted, batches),
            run.train,
            backward=False,
            sources=len(run.stream.blend.sources),
            global_batch_size=global_batch_size,
        )
    difference = relative(losses.mean, full.mean)
    after = run.shadow.after(iteration, difference)
    falls_back = after != run.shadow
    run.shadow = after
    row = {"loss": losses.mean, "full_loss": full.mean, "difference": difference, "full_until": after.full_until}
    run.metrics.write("shadow", iteration, **row)
    if falls_back:
        told = "iteration %d: FP8's loss %.4f lies %.2g of it from %.4f without FP8: none in iterations %d to %d"
        window = (iteration + 1, after.full_until)
        logger.warning(told, iteration, losses.mean, abs(difference), full.mean, *window)
