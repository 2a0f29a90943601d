"""Builds both sides of every case, then trains a tiny model by both on the same samples.

    python both_sides_worker.py FOLDER OUT

FOLDER has `blend/blend.json`.  OUT gets what `training_dry.dry_run` says of each case, and the losses and gradient
norms of each side.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

FOLDER, OUT = Path(sys.argv[1]), Path(sys.argv[2])
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import bare_loop  # noqa: E402
import steps  # noqa: E402
import training_dry  # noqa: E402
import training_ours  # noqa: E402
from training_cases import CASES  # noqa: E402
from training_jobs import job, recipe  # noqa: E402

from megatron_ipt.data.stream import BlendStream  # noqa: E402
from megatron_ipt.mcore import parallel  # noqa: E402

SIZES = {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 4, "num_query_groups": 2}
SMALL = CASES["8m-one-process"]
CASE = replace(
    SMALL,
    model={**SMALL.model, **SIZES, "vocab_size": 512},
    train={"seq_length": 64, "micro_batch_size": 2, "global_batch_size": 4},
    steps=4,
)


def main() -> None:
    built = {name: training_dry.dry_run(case) for name, case in CASES.items()}
    blend = FOLDER / "blend" / "blend.json"
    (FOLDER / "recipe.yaml").write_text(yaml.safe_dump(recipe(CASE, FOLDER / "run", blend)), encoding="utf-8")
    training_ours.main(FOLDER / "recipe.yaml", FOLDER / "ours.json")
    ours = json.loads((FOLDER / "ours.json").read_text(encoding="utf-8"))
    OUT.write_text(json.dumps({"built": built, "ours": ours, "bare": bare(blend)}), encoding="utf-8")


def bare(blend: Path) -> dict[str, Any]:
    """The bare loop on the samples that the blend gives, one after another."""
    stream = BlendStream(blend)
    samples = [stream.sample(index) for index in range(CASE.steps * CASE.train["global_batch_size"])]
    rows = np.stack([np.append(sample.tokens, sample.labels[-1]) for sample in samples])
    rows.astype(np.uint16).tofile(FOLDER / "tokens.bin")
    with parallel.distributed():
        bare_loop.mpu.initialize_model_parallel()
        try:
            return bare_loop.train(asdict(job(CASE, "local", FOLDER / "tokens.bin", 2)), steps.Steps())
        finally:
            bare_loop.mpu.destroy_model_parallel()


if __name__ == "__main__":
    assert "RANK" not in os.environ
    main()
