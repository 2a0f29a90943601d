"""ipt run: every step of a recipe in order, each in a process of its own; what has not changed is not done again."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import typer

from data_prep.errors import UserError, nearest
from megatron_ipt.cli import freshness, processes, tables
from megatron_ipt.cli.pipeline import STEPS, Context, Step, check, settings_of
from megatron_ipt.recipe import load_recipe, to_yaml


def run(
    recipe: Annotated[Path, typer.Argument(help="recipe, YAML")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    only: Annotated[str | None, typer.Option(help="run this step alone, whether or not it is fresh")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the settings and what would run; run nothing")
    ] = False,
) -> None:
    """Run a recipe: raw text to report.  Prints the resolved settings; skips steps that are unchanged."""
    context = Context(load_recipe(recipe, overrides or []), recipe, overrides or [])
    if only is not None:
        _find(only).action(context)
        return
    check(context.recipe)
    console = tables.console()
    console.rule(f"{context.recipe.name}: resolved settings")
    console.print(to_yaml(context.recipe), markup=False)
    began = time.perf_counter()
    for step in STEPS:
        if step.runs(context.recipe):
            run_step(step, context, dry_run=dry_run)
    minutes = (time.perf_counter() - began) / 60
    if not dry_run:
        console.rule(f"{context.recipe.name}: done in {minutes:.1f} minutes")
        if context.paths.report.exists():
            console.print(f"report: {context.paths.report}", soft_wrap=True)


def run_step(step: Step, context: Context, *, dry_run: bool) -> None:
    """Run one step in a process of its own unless it is fresh, and remember what it read and wrote."""
    folder = context.paths.root / ".steps"
    key = freshness.key_of(step.name, settings_of(step, context.recipe), step.inputs(context))
    before = freshness.Record.read(folder, step.name)
    outputs = step.outputs(context)
    fresh = before is not None and before.key == key and before.outputs == freshness.content_of(outputs)
    state = "unchanged" if fresh else "would run" if dry_run else "runs"
    tables.console().rule(f"{step.name}: {state}", align="left")
    if fresh or dry_run:
        return
    began = time.perf_counter()
    peak = _child(step, context)
    outputs = step.outputs(context)  # again: a step may name what it wrote by a pattern
    missing = [path for path in outputs if not path.exists()]
    if missing:
        raise UserError(step.name, f"the step ended without writing {missing[0]}", "see what it printed")
    seconds = time.perf_counter() - began
    freshness.Record(step.name, key, freshness.content_of(outputs), seconds, peak).write(folder)
    memory = f", {peak / 2**30:.1f} GiB at most" if peak else ""
    tables.console().print(f"{step.name} took {seconds:.1f} s{memory}")


def _find(name: str) -> Step:
    for step in STEPS:
        if step.name == name:
            return step
    raise UserError("--only", f"no step '{name}'", nearest(name, [step.name for step in STEPS]))


def _child(step: Step, context: Context) -> int | None:
    """Run `ipt run --only STEP`; returns the peak memory of the process and its children [bytes].

    Its own process, so that memory is given back and the CPU shim of one step does not reach another.
    """
    command = [sys.executable, "-m", "megatron_ipt.cli.main", "run", str(context.path), *context.overrides]
    with processes.child([*command, "--only", step.name], os.environ) as process:
        watch = _MemoryWatch(process.pid)
        watch.start()
        try:
            code = process.wait()
        finally:
            watch.stop()
    if code < 0:
        killed = signal.Signals(-code).name
        mend = "start again: what was finished stays" + (" (out of memory?)" if code == -signal.SIGKILL else "")
        raise UserError(f"step {step.name}", f"was ended by {killed}", mend)
    if code:
        raise typer.Exit(code)  # the child has told why
    return watch.peak or None


class _MemoryWatch(threading.Thread):
    """Samples the memory of a process tree: proportional set sizes, so that shared pages count once [bytes]."""

    def __init__(self, pid: int, interval_seconds: float = 1.0) -> None:
        super().__init__(daemon=True)
        self.pid, self.interval, self.peak, self._ended = pid, interval_seconds, 0, threading.Event()

    def run(self) -> None:
        try:
            import psutil
        except ImportError:
            return
        while not self._ended.wait(self.interval):
            total = 0
            try:
                root = psutil.Process(self.pid)
                for process in [root, *root.children(recursive=True)]:
                    total += process.memory_full_info().pss
            except psutil.Error:
                continue
            self.peak = max(self.peak, total)

    def stop(self) -> None:
        self._ended.set()
