"""tools/pretrain.py under torchrun: a run of two steps, saved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from data_prep.blend import plan
from data_prep.settings import BlendSettings, SourceSettings

TOOL = Path(__file__).parents[2] / "tools" / "pretrain.py"


def test_torchrun_trains_and_saves(tmp_path: Path, write_dataset: Any) -> None:
    write_dataset(tmp_path / "d", [[*range(1, 90), 0]] * 8, vocab_size=128)
    sources = {"one": SourceSettings(prefix=tmp_path / "d", weight=1)}
    plan(BlendSettings(sources=sources, seq_length=16, train_samples=8), tmp_path / "blend")
    sizes = {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4, "num_query_groups": 2}
    train = {"blend": str(tmp_path / "blend" / "blend.json"), "seq_length": 16, "bf16": False, "lr": 1e-3}
    train |= {"global_batch_size": 2, "micro_batch_size": 1, "train_iters": 9, "lr_decay_style": "constant"}
    recipe = tmp_path / "recipe.yaml"
    run = {"name": "t", "output_dir": str(tmp_path / "run"), "model": {**sizes, "vocab_size": 128}, "train": train}
    recipe.write_text(yaml.safe_dump(run), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = subprocess.run(
        [*launch, str(TOOL), "--recipe", str(recipe), "train.train_iters=2"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in next((tmp_path / "run").rglob("metrics.jsonl")).read_text().splitlines()]
    assert [row["iteration"] for row in rows if row["kind"] == "checkpoint"] == [2]
    assert next((tmp_path / "run").rglob("iter_0000002")).is_dir()
