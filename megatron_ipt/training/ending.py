"""What a run leaves behind: checkpoints while it goes on, and all that it reached when it is told to end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data_prep.errors import UserError
from megatron_ipt.training.run import Run
from megatron_ipt.training.signals import Stop


def save(run: Run, *, last: bool) -> None:
    """A checkpoint of where the run stands; all ranks call it.  `last`: every layout can load it."""
    run.watchdog.free()
    card = replace(
        run.card,
        iteration=run.iteration,
        consumed_samples=run.consumed_samples,
        consumed_tokens=run.consumed_samples * run.train.seq_length,
        spikes=run.spikes.state(),
        shadow=run.shadow.state(),
    )
    run.saver.save(card, run.chunks, run.optimizer, last=last)
    run.saved = run.iteration


def end_early(run: Run, reason: Stop, row: Mapping[str, Any]) -> None:
    """Save what was reached and say why the run ends; `row` has the figures of its last step.

    A stop file is asked for and answered: the run returns, exit code 0.  SIGTERM comes from outside: UserError, exit
    code 1 with one line, so that no caller takes the run for a finished one (torchrun has no other code to pass on).
    """
    if run.drawn.steps:
        run.metrics.write("train", run.iteration, **row, **run.drawn.take())
    if run.saved != run.iteration:
        save(run, last=True)
    run.saver.finish()
    run.metrics.write("stopped", run.iteration, reason=reason.name.lower())
    if reason is Stop.SIGTERM:
        reached = f"ended from outside at iteration {run.iteration} of {run.train.train_iters}"
        raise UserError("SIGTERM", reached, "it is saved: start again to go on")
