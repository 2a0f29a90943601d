"""ipt train: start torchrun on this machine, and tell its failure in one line."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_prep.errors import UserError
from megatron_ipt.cli import processes, tables, torchrun_log
from megatron_ipt.cli.options import rows_of
from megatron_ipt.paths import RunPaths
from megatron_ipt.recipe import Recipe, load_recipe, section
from megatron_ipt.settings import ModelSettings, TrainSettings
from megatron_ipt.training import determinism

if TYPE_CHECKING:
    from megatron_ipt.architecture import Architecture
WORKER = ["-m", "megatron_ipt.pretrain"]
"""What torchrun starts; a test puts a faulty one in its place."""


def _list(wanted: bool) -> None:
    if wanted:
        rows = rows_of(TrainSettings, "train") + rows_of(ModelSettings, "model")
        tables.show("settings of a run", ("key", "default", r"meaning \[unit]"), rows)
        raise typer.Exit()


def train(
    recipe: Annotated[Path, typer.Argument(help="recipe, YAML")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    settings: Annotated[
        bool,
        typer.Option(
            "--settings",
            help="list every key of `train` and `model` with unit and default",
            is_eager=True,
            callback=_list,
        ),
    ] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="the same bits each time: train.deterministic_mode=true")
    ] = False,
    where: Annotated[
        bool, typer.Option("--where", help="check the recipe, print train_iters and the folder of checkpoints, no more")
    ] = False,
    world_size: Annotated[
        int | None,
        typer.Option(min=1, help=r"with --where: processes of the whole job; default train.nproc_per_node \[ranks]"),
    ] = None,
) -> None:
    """Train with train.nproc_per_node processes; goes on from the newest checkpoint in train.save.

    On a cluster start `torchrun ... -m megatron_ipt.pretrain --recipe RECIPE` on every node instead; under Slurm
    tools/launch_slurm.sbatch does.
    """
    overrides = [*(overrides or []), *(["train.deterministic_mode=true"] if deterministic else [])]
    found = load_recipe(recipe, overrides)
    if where:
        train_settings: TrainSettings = section(found, "train")
        architecture = check_layout_of(found, world_size or train_settings.nproc_per_node)
        from megatron_ipt.mcore.dry import check_settings  # megatron-core takes seconds to import: faults first

        check_settings(architecture, train_settings)
        folder = train_settings.save or RunPaths(found.output_dir).checkpoints
        typer.echo(f"{train_settings.train_iters} {folder.absolute()}")
        return
    launch(found, recipe, overrides)


def launch(recipe: Recipe, path: Path, overrides: Sequence[str]) -> None:
    """Run torchrun to its end; UserError with the workers' own line, or with the place of the log."""
    settings = section(recipe, "train")
    check_here(recipe)
    log = RunPaths(recipe.output_dir).train / "torchrun.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "error.txt")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(settings.nproc_per_node), *WORKER]
        command += ["--recipe", str(path), *overrides]
        environment = {**os.environ, "IPT_ERROR_FILE": str(told)}
        if settings.deterministic_mode:
            determinism.prepare(environment)
        # one thread a process: two processes of two threads each collapse on two cores
        environment.setdefault("OMP_NUM_THREADS", "1")
        # what --shutdown-timeout sets; an older torchrun has no such flag and would not start with it
        environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(processes.SHUTDOWN_SECONDS)
        with log.open("wb") as stderr, processes.child(command, environment, stderr) as torchrun:
            code = torchrun.wait()
        if code == 0:
            return
        if fault := torchrun_log.killed(log, first_only=told.exists()):
            raise fault
        if told.exists():
            raise _Told(told.read_text(encoding="utf-8"))
    raise UserError(
        log,
        f"torchrun ended with {code} ({torchrun_log.cause(log)})",
        "the log has the whole of it; start again to go on from the newest checkpoint",
    )


def check_here(recipe: Recipe) -> None:
    """UserError for a run of `ipt train` that this machine cannot start: its layout, or too few GPUs for it."""
    processes_wanted = section(recipe, "train").nproc_per_node
    check_layout_of(recipe, processes_wanted)
    processes.check_gpus(processes_wanted)


def check_layout_of(recipe: Recipe, world_size: int) -> Architecture:
    """The recipe's model; UserError for a layout that cannot be, before any process is started."""
    from megatron_ipt.architecture import check_layout, with_settings
    from megatron_ipt.convert.families import read_architecture

    model: ModelSettings = section(recipe, "model")
    base = read_architecture(model.load_hf) if model.load_hf else None
    architecture = with_settings(base, model)
    check_layout(architecture, section(recipe, "train"), world_size)
    return architecture


class _Told(UserError):
    """A line that a worker has already worded."""

    def __init__(self, line: str) -> None:
        Exception.__init__(self, line)
