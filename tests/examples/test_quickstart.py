"""The quickstart's own recipe, cut short: the real corpus, the real model, every step; then again, and further."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "examples" / "quickstart" / "recipe.yaml"
STEPS = [
    "fetch",
    "synthesize",
    "check",
    "render",
    "index",
    "blend",
    "baseline",
    "train",
    "export",
    "evaluate",
    "report",
]


def run(folder: Path, *overrides: str) -> str:
    command = [sys.executable, "-m", "megatron_ipt.cli.main", "run", str(RECIPE), f"output_dir={folder}", *overrides]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def states(output: str) -> dict[str, str]:
    rows = [row.split() for row in output.splitlines() if " ───" in row and ": " in row]
    return {row[0].rstrip(":"): row[1] for row in rows if row[0].rstrip(":") in STEPS}


@pytest.mark.long
def test_every_arrow_runs_is_reused_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    short = ["synthesize.documents=3", "synthesize.max_new_tokens=64", "evaluate.max_tokens=1500", "train.eval_iters=1"]
    steps = [*short, "train.lr_warmup_iters=0", "train.lr_decay_iters=4"]
    first = states(run(folder, *steps, "train.train_iters=2"))
    assert first == dict.fromkeys(STEPS, "runs")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "bits per byte" in page
    again = states(run(folder, *steps, "train.train_iters=2"))
    assert again == dict.fromkeys(STEPS, "unchanged")
    further = states(run(folder, *steps, "train.train_iters=3"))
    assert {name for name, state in further.items() if state == "unchanged"} >= {
        "fetch",
        "synthesize",
        "index",
        "baseline",
    }
    rows = [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows if row["kind"] == "train"] == [1, 2, 3]
    documents = {json.loads(line)["id"] for line in (folder / "raw" / "train.jsonl").read_text().splitlines()}
    held_out = {json.loads(line)["id"] for line in (folder / "raw" / "held_out.jsonl").read_text().splitlines()}
    used = {
        document
        for name in ("augmented", "raw")
        for line in (folder / "text" / f"{name}.jsonl").read_text().splitlines()
        for document in json.loads(line)["document_ids"]
    }
    assert used == documents
    assert not used & held_out


@pytest.mark.long
def test_the_real_model_as_a_checkpoint_has_transformers_logits(tmp_path: Path) -> None:
    """SmolLM2 read into megatron-core, saved sharded, opened again."""
    from data_prep.fetch import fetch_model

    model = fetch_model("smollm2-135m-instruct")
    command = [
        sys.executable,
        "-m",
        "megatron_ipt.cli.main",
        "convert",
        "import",
        str(model),
        str(tmp_path / "ck"),
        "--fp32",
    ]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    command[3:] = ["convert", "parity", str(model), str(tmp_path / "ck")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert "max |dlogit|" in done.stdout
