"""What a worker of training runs shares with the others: its `main`, and what a run writes to its metrics."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from megatron_ipt import pretrain
from megatron_ipt.recipe import Recipe, load_recipe
from megatron_ipt.training.metrics import Metrics


def as_json(found: dict[str, Any], out: Path) -> None:
    out.write_text(json.dumps(found), encoding="utf-8")


def run_jobs(run: Callable[[Path, Any], Any], write: Callable[[dict[str, Any], Path], None] = as_json) -> None:
    """`worker.py RECIPE OUT JOBS [ALONE]`: what `run` gives of each job, by name, in one process group, to OUT.

    A run that is refused has its error instead.  Jobs of ALONE are run by the first process, in a group of one, when
    the others are done.
    """
    import torch.distributed as dist

    from megatron_ipt.mcore import parallel

    def results(jobs: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, job in jobs.items():
            gc.freeze()  # a save collects garbage: what is imported would be looked through each time, half of a run
            try:
                found[name] = run(recipe, job)
            except UserError as error:
                found[name] = {"error": str(error)}
        return found

    logging.basicConfig(level=logging.WARNING)
    recipe, out, *jobs = Path(sys.argv[1]), Path(sys.argv[2]), *map(json.loads, sys.argv[3:])
    with parallel.distributed():
        found = results(jobs[0])
        is_main = dist.get_rank() == 0
    if not is_main:
        return
    if jobs[1:]:
        os.environ.pop("RANK", None)
        with parallel.distributed():
            found |= results(jobs[1])
    write(found, out)


def trained(recipe: Path, overrides: list[str]) -> list[dict[str, Any]]:
    return train(load_recipe(recipe, overrides))


def train(recipe: Recipe) -> list[dict[str, Any]]:
    """Runs `recipe`; gives the rows of this call."""
    rows: list[dict[str, Any]] = []
    write = Metrics.write

    def recorded(self: Metrics, kind: str, iteration: int, **values: Any) -> None:
        rows.append({"kind": kind, "iteration": iteration, **values})
        write(self, kind, iteration, **values)

    Metrics.write = recorded  # type: ignore[method-assign]
    try:
        pretrain.pretrain(recipe)
    finally:
        Metrics.write = write  # type: ignore[method-assign]
    return rows
