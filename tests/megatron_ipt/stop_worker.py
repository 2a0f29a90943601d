"""On several ranks: runs that are told to stop in the middle, each in its own way.

    torchrun stop_worker.py RECIPE FOLDER

Writes FOLDER/JOB.RANK.json: the metrics rows of that rank, or its error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from recorded import train

from data_prep.errors import UserError
from megatron_ipt import pretrain
from megatron_ipt.mcore import parallel
from megatron_ipt.recipe import load_recipe

AT = 2
step = pretrain.training_step


def run(job: str, recipe: Path, folder: Path, tell: Callable[[Path], None], *more: str) -> None:
    """Train; in the middle of step AT, `tell` is called on each rank with that rank's own stop file."""
    rank = dist.get_rank()
    stop_file = folder / f"{job}.stop.{rank}"

    def told_step(run: Any, loader: Any) -> dict[str, Any]:
        row = step(run, loader)
        if run.iteration == AT:
            tell(stop_file)
        return row

    pretrain.training_step = told_step
    settings = [f"output_dir={folder / job}", f"train.stop_file={stop_file}", "train.train_iters=4"]
    settings += ["train.parity_gate=false", "train.held_out=null", *more]
    try:
        found: Any = train(load_recipe(recipe, settings))
    except UserError as error:
        found = {"error": str(error)}
    (folder / f"{job}.{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def end_group(wanted: bool) -> None:
    """What torchrun does at SIGTERM: it sends it to a worker's whole process group.  This worker has saved before."""
    if wanted:
        os.killpg(0, signal.SIGTERM)


def main() -> None:
    recipe, folder = Path(sys.argv[1]), Path(sys.argv[2])
    with parallel.distributed():
        rank = dist.get_rank()
        run("file_of_rank_0", recipe, folder, lambda path: path.touch() if rank == 0 else None)
        run("file_of_rank_1", recipe, folder, lambda path: path.touch() if rank == 1 else None)
        for chosen in (0, 1):
            run(f"term_of_rank_{chosen}", recipe, folder, lambda _, chosen=chosen: end_group(rank == chosen))
        behind = ("train.async_save=true", "train.save_interval=1")
        run("term_while_it_writes", recipe, folder, lambda _: end_group(rank == 1), *behind)


if __name__ == "__main__":
    main()
