"""The training run, from the recipe to the last checkpoint: read it from top to bottom.

    torchrun --nproc-per-node 2 -m megatron_ipt.pretrain --recipe recipe.yaml train.train_iters=60

is what `ipt train` runs on one machine and what a cluster calls on many.  The loop is ours; layers, parallelism,
optimizer and checkpoints are megatron.core's, behind `megatron_ipt.mcore`.

A run ends at train_iters, or earlier where it is told to: after each step all ranks agree on that
(`training/signals.py`), and what was reached is saved first.

Heavy imports stand inside the functions: a faulty recipe is told before they begin.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_prep.errors import UserError
from data_prep.readers import DISK_FULL
from megatron_ipt.paths import RunPaths
from megatron_ipt.recipe import Recipe, load_recipe, section
from megatron_ipt.settings import TrainSettings

if TYPE_CHECKING:
    import torch

    from megatron_ipt.data.loader import Loader
    from megatron_ipt.data.stream import BlendStream, HeldOut
    from megatron_ipt.mcore.checkpoint import RunCard
    from megatron_ipt.mcore.optimizer import MegatronOptimizer, OptimizerParamScheduler
    from megatron_ipt.mcore.parallel import Ranks
    from megatron_ipt.training.metrics import Drawn, Metrics
    from megatron_ipt.training.signals import Stop

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Run:
    """Everything a training run holds on one rank.

    `iteration` and `consumed_samples` are where it stands, `saved` is the iteration this process saved last.
    """

    train: TrainSettings
    ranks: Ranks
    stream: BlendStream
    held_out: Sequence[HeldOut]
    chunks: list[torch.nn.Module]
    optimizer: MegatronOptimizer
    schedule: OptimizerParamScheduler
    metrics: Metrics
    card: RunCard
    checkpoints: Path
    iteration: int
    consumed_samples: int
    drawn: Drawn
    saved: int = -1


def pretrain(recipe: Recipe) -> None:
    """Run `recipe` to its train_iters in the current process group."""
    from megatron_ipt.mcore import parallel

    train = section(recipe, "train")
    with parallel.model_parallel(train) as ranks:
        run = setup(recipe, train, ranks)
        try:
            fit(run)
        finally:
            run.metrics.close()


def setup(recipe: Recipe, train: TrainSettings, ranks: Ranks) -> Run:
    """Data, model, weights, the parity gate, optimizer, and the checkpoint to go on from, in this order."""
    from megatron_ipt.architecture import check_layout, padded_vocab_size, with_settings
    from megatron_ipt.convert.families import read_architecture
    from megatron_ipt.convert.load_hf import load_hf
    from megatron_ipt.convert.parity import gate
    from megatron_ipt.mcore import checkpoint as checkpoints
    from megatron_ipt.mcore import config as configs
    from megatron_ipt.mcore import model as models
    from megatron_ipt.mcore import optimizer as optimizers
    from megatron_ipt.training import start as starts
    from megatron_ipt.training.metrics import Drawn, Metrics

    paths = RunPaths(recipe.output_dir)
    model = section(recipe, "model")
    stream, held_out = starts.open_data(train, paths)
    architecture = with_settings(read_architecture(model.load_hf) if model.load_hf else None, model)
    check_layout(architecture, train, ranks.world_size)
    starts.check_vocabulary(stream, architecture, model.load_hf)
    vocab_size = padded_vocab_size(architecture, model, train)
    save = train.save or paths.checkpoints
    start = checkpoints.latest(save) or (checkpoints.resolve(train.load) if train.load else None)
    card = checkpoints.RunCard.read(start) if start else None
    fresh = card is None or (train.finetune and start is not None and start.parent != save)
    iteration, consumed = (0, 0) if card is None or fresh else (card.iteration, card.consumed_samples)
    starts.verify_data(stream, held_out, seed=iteration)
    starts.check_held_out(stream, held_out, recipe, None if fresh else card)
    if card is not None:
        starts.check_continues(card, architecture, vocab_size, None if fresh else stream.blend, start)

    # a run with a folder of its own has metrics of its own
    log = paths.metrics if train.save is None else train.save / paths.metrics.name
    metrics = Metrics(log, is_main=ranks.is_main, resumed_from=iteration, train_iters=train.train_iters)
    config = configs.transformer_config(architecture, train)
    configs.check_runs_here(config)
    chunks = models.build(architecture, config, train, vocab_size)
    if model.load_hf and card is None:
        if train.parity_gate:
            metrics.write("parity", 0, **gate(model.load_hf, architecture, train, vocab_size).to_json())
        load_hf(chunks, model.load_hf, architecture)
    wrapped = models.wrap(chunks, config, train)
    optimizer = optimizers.build(train, wrapped)
    if start is not None and card is not None:
        if fresh:
            checkpoints.load(start, wrapped, None)
            optimizer.reload_model_params()
        else:
            starts.check_changes(card, recipe, start)
            with optimizers.groups_as_saved(optimizer, train, card.recipe.get("train", {})):
                checkpoints.load(start, wrapped, optimizer)
        logger.info("continuing from %s at iteration %d, sample %d", start, iteration, consumed)
    schedule = optimizers.build_schedule(train, optimizer, consumed)
    new_card = starts.make_card(recipe, model, architecture, vocab_size, stream.blend_hash)
    state = (wrapped, optimizer, schedule, metrics, new_card, save, iteration, consumed, Drawn(stream.blend))
    return Run(train, ranks, stream, held_out, *state)


def fit(run: Run) -> None:
    """The loop: a step, its metrics, now and then a validation and a checkpoint; then whether to go on."""
    from megatron_ipt.data.loader import read_ahead
    from megatron_ipt.training import signals

    train = run.train
    if run.iteration >= train.train_iters:
        logger.info("nothing to do: iteration %d of %d; raise train.train_iters", run.iteration, train.train_iters)
        return
    if run.held_out and run.iteration == 0:
        validate_and_write(run)
    if run.ranks.is_main and train.stop_file is not None and train.stop_file.exists():
        told = "%s is there already: the run ends after its first step; remove it if it is an old one"
        logger.warning(told, train.stop_file)
    reading = read_ahead(run.stream.sample, train, run.ranks, run.consumed_samples, train.train_iters - run.iteration)
    with signals.watched(train.stop_file, is_main=run.ranks.is_main) as agree, reading as loader:
        while run.iteration < train.train_iters:
            row = training_step(run, loader)
            last = run.iteration == train.train_iters
            saving = last or (train.save_interval is not None and run.iteration % train.save_interval == 0)
            if saving or run.iteration % train.log_interval == 0:
                run.metrics.write("train", run.iteration, **row, **run.drawn.take())
            if run.held_out and (last or (train.eval_interval and run.iteration % train.eval_interval == 0)):
                validate_and_write(run)
            if saving:
                save_checkpoint(run)
            if not last and (reason := agree()):
                if run.drawn.steps:
                    run.metrics.write("train", run.iteration, **row, **run.drawn.take())
                end_early(run, reason)
                return


def training_step(run: Run, loader: Loader) -> dict[str, Any]:
    """One global batch: forward, backward, update.  Returns the step's figures; moves the run's position."""
    from megatron_ipt.mcore import device, parallel
    from megatron_ipt.mcore import model as models
    from megatron_ipt.mcore import optimizer as optimizers
    from megatron_ipt.training.metrics import source_figures

    train, began = run.train, time.perf_counter()
    batches = next(loader)
    lr = optimizers.learning_rate(run.optimizer)
    optimizers.zero_grad(run.optimizer, run.chunks)
    sources = len(run.stream.blend.sources)
    losses = models.run_batch(run.chunks, partial(iter, batches), train, backward=True, sources=sources)
    if not math.isfinite(losses.mean):
        raise UserError(
            f"iteration {run.iteration + 1}",
            f"the loss is {losses.mean}",
            "the last checkpoint is whole: lower train.lr",
        )
    _, norm = optimizers.step(run.optimizer)
    if not math.isfinite(norm):
        raise UserError(
            f"iteration {run.iteration + 1}",
            f"the gradient norm is {norm}",
            "the last checkpoint is whole: lower train.lr",
        )
    run.drawn.add(losses.by_source)
    run.consumed_samples += train.global_batch_size
    run.schedule.step(train.global_batch_size)
    run.iteration += 1
    seconds = time.perf_counter() - began
    return {
        "consumed_samples": run.consumed_samples,
        "consumed_tokens": run.consumed_samples * train.seq_length,
        "loss": losses.mean,
        "loss_tokens": losses.tokens,
        "lr": lr,
        "grad_norm": norm,
        "sources": source_figures(run.stream.blend, run.consumed_samples, losses.by_source),
        "step_seconds": seconds,
        "data_seconds": parallel.largest_over_ranks(loader.waited),
        "tokens_per_second": train.global_batch_size * train.seq_length / seconds,
        "memory_bytes": int(parallel.largest_over_ranks(device.memory_bytes())),
    }


def validate_and_write(run: Run) -> None:
    from megatron_ipt.training.validation import validate

    for held_out in run.held_out:
        run.metrics.write("validation", run.iteration, **asdict(validate(run.chunks, held_out, run.train, run.ranks)))


def save_checkpoint(run: Run) -> None:
    from megatron_ipt.mcore import checkpoint as checkpoints

    began = time.perf_counter()
    card = replace(run.card, iteration=run.iteration, consumed_samples=run.consumed_samples)
    path = checkpoints.save(run.checkpoints, card, run.chunks, run.optimizer)
    run.saved = run.iteration
    run.metrics.write("checkpoint", run.iteration, path=path.name, seconds=time.perf_counter() - began)


def end_early(run: Run, reason: Stop) -> None:
    """Save what was reached and say why the run ends.

    A stop file is asked for and answered: the run returns, exit code 0.  SIGTERM comes from outside: UserError, exit
    code 1 with one line, so that no caller takes the run for a finished one (torchrun has no other code to pass on).
    """
    from megatron_ipt.training.signals import Stop

    if run.saved != run.iteration:
        save_checkpoint(run)
    run.metrics.write("stopped", run.iteration, reason=reason.name.lower())
    if reason is Stop.SIGTERM:
        reached = f"ended from outside at iteration {run.iteration} of {run.train.train_iters}"
        raise UserError("SIGTERM", reached, "it is saved: start again to go on")


def main(
    recipe: Annotated[Path, typer.Option(help="the recipe, a YAML file")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
) -> None:
    """One rank of a training run; start it with torchrun."""
    from rich.console import Console
    from rich.logging import RichHandler

    is_main = os.environ.get("RANK", "0") == "0"
    console = Console(width=None if sys.stdout.isatty() else 120)
    handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%X")
    logging.basicConfig(level=logging.INFO if is_main else logging.ERROR, format="%(message)s", handlers=[handler])
    try:
        start(load_recipe(recipe, overrides or []))
    except UserError as error:
        tell_launcher(error)
        sys.exit(1)


def start(recipe: Recipe) -> None:
    """Join the process group and train; a full disk becomes a UserError."""
    from megatron_ipt.mcore import parallel

    try:
        with parallel.distributed():
            pretrain(recipe)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        where = error.filename or recipe.output_dir
        raise UserError(where, "the disk is full", "make room and start again: the last checkpoint is whole") from error


def tell_launcher(error: UserError) -> None:
    """One line: to `ipt train` through the file it named (the first rank to fail), else on stderr with the rank."""
    target = os.environ.get("IPT_ERROR_FILE")
    if target:
        with contextlib.suppress(FileExistsError), Path(target).open("x", encoding="utf-8") as file:
            file.write(str(error))
    else:
        rank = os.environ.get("RANK", "0")
        sys.stderr.write(f"error: {error}\n" if rank == "0" else f"error on rank {rank}: {error}\n")


if __name__ == "__main__":
    typer.run(main)
