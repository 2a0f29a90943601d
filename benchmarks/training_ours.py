#!/usr/bin/env python3
"""One rank of our training run, as a user starts it, with the start of each step noted.

    torchrun --nproc-per-node N benchmarks/training_ours.py RECIPE OUT [BATON]

OUT gets what `bare_loop.py` writes of its side, and the seconds each step waited for data; BATON is as there.  The
checkpoint at the end is left out: it lies after the last step that counts, and of 8B parameters it would fill a disk.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import steps

from data_prep.errors import UserError
from megatron_ipt import pretrain
from megatron_ipt.mcore import parallel
from megatron_ipt.paths import RunPaths
from megatron_ipt.recipe import load_recipe
from megatron_ipt.training import ending
from megatron_ipt.training.metrics import read_metrics


def main(recipe: Path, out: Path, baton: str = "") -> None:
    settings = load_recipe(recipe)
    noted_steps = steps.of_this_rank(baton)
    step = pretrain.training_step

    def noted(*arguments: Any) -> Any:
        noted_steps.begin()
        return step(*arguments)

    pretrain.training_step = noted  # type: ignore[assignment]
    ending.save = lambda *_, **__: None
    with parallel.distributed():
        pretrain.pretrain(settings)
        noted_steps.end()
    if os.environ.get("RANK", "0") == "0":
        rows = [row for row in read_metrics(RunPaths(settings.output_dir).metrics) if row["kind"] == "train"]
        told = {
            "periods_ms": noted_steps.periods_ms,
            "processor_ms": noted_steps.processor_ms,
            "data_ms": [1e3 * row["data_seconds"] for row in rows],
            "losses": [row["loss"] for row in rows],
            "norms": [row["grad_norm"] for row in rows],
            "memory_bytes": max(row["memory_bytes"] for row in rows),
        }
        out.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    except UserError as error:
        sys.exit(f"error: {error}")
