"""The training run, from the recipe to the last checkpoint: read it from top to bottom.

    torchrun --nproc-per-node 2 -m megatron_ipt.pretrain --recipe recipe.yaml train.train_iters=60

is what `ipt train` runs on one machine and what a cluster calls on many.  The loop is ours; layers, parallelism,
optimizer and checkpoints are megatron.core's, behind `megatron_ipt.mcore`.

A run ends at train_iters, or earlier where it is told to: after each step all ranks agree on that
(`training/signals.py`), and what was reached is saved first.

Heavy imports stand inside the functions: a faulty recipe is told before they begin.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_prep.errors import UserError
from megatron_ipt.fp32 import without_tf32
from megatron_ipt.paths import RunPaths
from megatron_ipt.recipe import Recipe, load_recipe, section
from megatron_ipt.training import determinism, launched
from megatron_ipt.training.spikes import Verdict, agree
from megatron_ipt.training.watchdog import Phase

if TYPE_CHECKING:
    from megatron_ipt.data.loader import Loader
    from megatron_ipt.training.figures import Step
    from megatron_ipt.training.run import Run

logger = logging.getLogger(__name__)


def pretrain(recipe: Recipe) -> None:
    """Run `recipe` to its train_iters in the current process group."""
    from megatron_ipt.mcore import device, parallel
    from megatron_ipt.mcore.checkpoint_saver import only_run
    from megatron_ipt.training.run import setup

    train = section(recipe, "train")
    groups = parallel.model_parallel(train)
    saves = train.save or RunPaths(recipe.output_dir).checkpoints
    with device.deterministic(train.deterministic_mode), groups as ranks, only_run(saves):
        run = setup(recipe, train, ranks)
        gc.freeze()  # a save collects garbage, and need not look through all that stands already
        try:
            fit(run)
        except Exception:
            run.saver.rescue()
            raise
        finally:
            gc.unfreeze()
            run.close()


def fit(run: Run) -> None:
    """The loop: a step, its metrics, now and then a validation and a checkpoint; then whether to go on."""
    from megatron_ipt.data.loader import read_ahead
    from megatron_ipt.training import ending, progress, signals
    from megatron_ipt.training.validation import validate_and_write

    train = run.train
    if run.iteration >= train.train_iters:
        logger.info("nothing to do: iteration %d of %d; raise train.train_iters", run.iteration, train.train_iters)
        return
    if run.held_out and run.iteration == 0:
        validate_and_write(run)
    reading = read_ahead(run.stream.sample, train, run.ranks, run.consumed_samples, train.train_iters - run.iteration)
    watched = signals.watched(train.stop_file, is_main=run.ranks.is_main)
    bar = progress.shown(run.iteration, train.train_iters, is_main=run.ranks.is_main)
    with watched as agree_to_stop, run.watchdog, reading as loader, bar as show:
        while run.iteration < train.train_iters:
            step = training_step(run, loader)
            show(run.iteration, step.losses.mean)
            last = run.iteration == train.train_iters
            saving = last or (train.save_interval is not None and run.iteration % train.save_interval == 0)
            row = write_step(run, step, loader.waited, logged=saving or run.iteration % train.log_interval == 0)
            if run.held_out and (last or (train.eval_interval and run.iteration % train.eval_interval == 0)):
                validate_and_write(run)
            if saving:
                ending.save(run, last=last)
            else:
                run.saver.poll()
            run.watchdog.at(Phase.METRICS, run.iteration)
            if not last and (reason := agree_to_stop()):
                ending.end_early(run, reason, row)
                return


def training_step(run: Run, loader: Loader) -> Step:
    """One global batch: forward, backward, update if the batch deserves one.  Moves the run's position."""
    from megatron_ipt.mcore import optimizer as optimizers
    from megatron_ipt.training.batch import forward_backward
    from megatron_ipt.training.figures import Step

    run.graphs.before_step(run.watchdog.free)
    began, iteration = time.perf_counter(), run.iteration + 1
    samples = next(run.train.batch_sizes.steps(run.consumed_samples, 1))
    run.watchdog.at(Phase.DATA, iteration)
    batches = next(loader)
    run.watchdog.at(Phase.FORWARD_BACKWARD, iteration)
    lr = optimizers.learning_rate(run.optimizer)
    optimizers.zero_grad(run.optimizer, run.chunks)
    losses = forward_backward(run, batches, len(samples))
    run.watchdog.at(Phase.UPDATE, iteration)
    norm = optimizers.gradient_norm(run.optimizer)
    verdict = agree(run.spikes.judge(losses.mean, losses.tokens, norm))
    if verdict is Verdict.TAKE:
        optimizers.step(run.optimizer)
    run.watchdog.at(Phase.METRICS, iteration)
    run.spikes.note(verdict, losses.mean, norm)
    run.drawn.add(losses.by_source)
    run.schedule.step(len(samples))
    run.consumed_samples, run.iteration = samples.stop, iteration
    return Step(iteration, samples, losses, lr, norm, verdict, time.perf_counter() - began)


def write_step(run: Run, step: Step, waited: float, *, logged: bool) -> dict[str, Any]:
    """The figures of a step, and its line of metrics if it is `logged`.

    A step that is left out always has one, and its batch goes to quarantine; UserError after a few of those.
    """
    from megatron_ipt.training.figures import figures

    row = figures(run, step, waited)
    if step.verdict is not Verdict.TAKE:
        reason = step.verdict.name.lower()
        run.watchdog.free()
        run.metrics.write("skipped", step.iteration, reason=reason, **row, **run.drawn.take())
        if run.quarantine is not None:
            told = {"iteration": step.iteration, "reason": reason, "loss": step.losses.mean, "grad_norm": step.norm}
            run.quarantine.add(run.stream, step.samples, **told)
        run.spikes.check(step.verdict, step.losses.mean, step.norm, step.iteration)
    elif logged:
        run.metrics.write("train", step.iteration, **row, **run.drawn.take())
    return row


def main(
    recipe: Annotated[Path, typer.Option(help="the recipe, a YAML file")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
) -> None:
    """One rank of a training run; start it with torchrun."""
    from megatron_ipt.training import progress

    progress.log_to_console(is_main=os.environ.get("RANK", "0") == "0")
    without_tf32(os.environ)
    try:
        found = load_recipe(recipe, overrides or [])
        if section(found, "train").deterministic_mode:
            determinism.prepare(os.environ)
        launched.start(found, pretrain)
    except UserError as error:
        launched.tell(error)
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
