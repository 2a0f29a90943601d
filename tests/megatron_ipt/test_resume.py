"""A run that was stopped goes on to the same bytes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import TinyRun, environment, ipt, losses

DECAY = ["train.lr_decay_style=cosine", "train.lr_decay_iters=8", "train.lr_warmup_iters=2", "train.parity_gate=false"]
OVERLAP = ["train.overlap_grad_reduce=true", "train.overlap_param_gather=true"]
PP2 = ["train.pipeline_model_parallel_size=2", "train.bf16=true"]


def resumed_jobs(tiny: TinyRun) -> dict[str, list[str]]:
    start = [*DECAY, *PP2]
    here = f"train.save={tiny.folder / 'resume'}"
    return {
        "straight": [*start, f"train.save={tiny.folder / 'straight_save'}", "train.train_iters=6"],
        "first_half": [*start, here, "train.train_iters=3"],
        "second_half": [*start, here, "train.train_iters=6"],
        "nothing_left": [*start, here, "train.train_iters=6"],
        "other_layout": [*DECAY, "train.bf16=true", "train.tensor_model_parallel_size=2", here, "train.train_iters=7"],
        "other_lr": [*start, here, "train.train_iters=8", "train.lr=2e-4"],
        "other_model": [*start, here, "model.rotary_base=5000"],
    }


def overlapping_jobs(tiny: TinyRun) -> dict[str, list[str]]:
    """Two replicas under the distributed optimizer.  No validation: it would gather the weights before a save."""
    start = [*DECAY, "train.bf16=true", "train.held_out=null", "train.train_iters=6"]
    every = "train.save_interval=3"
    return {
        "gathered": [*start, every],
        "overlapped": [*start, *OVERLAP, every],
        "behind": [*start, *OVERLAP, every, "train.async_save=true"],
        "saved_once": [*start, *OVERLAP],
        "stopped": [*start, *OVERLAP, every, "train.train_iters=3"],
        "went_on": [*start, *OVERLAP, every, f"train.save={tiny.folder / 'stopped' / 'train' / 'checkpoints'}"],
    }


@pytest.fixture(scope="module")
def resumed(tiny: TinyRun, train_layouts: Any) -> Any:
    """All of both, in one process group."""
    return train_layouts(2, {**resumed_jobs(tiny), **overlapping_jobs(tiny)})


def shards(folder: Path) -> dict[str, str]:
    """SHA-256 of the tensor files of a checkpoint."""
    files: dict[str, str] = json.loads((folder / "integrity.json").read_text(encoding="utf-8"))["files"]
    return {name: digest for name, digest in files.items() if name.endswith(".distcp")}


def test_two_halves_have_the_losses_of_the_whole(resumed: Any) -> None:
    halves = losses(resumed["first_half"]) + losses(resumed["second_half"])
    assert halves == losses(resumed["straight"])


def test_two_halves_end_in_the_bytes_of_the_whole(resumed: Any, tiny: TinyRun) -> None:
    straight, resume = (shards(tiny.folder / name / "iter_0000006") for name in ("straight_save", "resume"))
    assert straight
    assert straight == resume


def test_a_finished_run_does_nothing(resumed: Any) -> None:
    assert resumed["nothing_left"] == []


@pytest.mark.parametrize("iteration", [3, 6])
def test_weights_that_the_next_step_would_gather_are_saved(resumed: Any, tiny: TinyRun, iteration: int) -> None:
    saved = {
        name: shards(tiny.folder / name / "train" / "checkpoints" / f"iter_{iteration:07d}")
        for name in ("gathered", "overlapped", "behind", "stopped")
    }
    assert saved["gathered"]
    assert saved["gathered"] == saved["overlapped"] == saved["behind"] == saved["stopped"]


def test_a_save_between_two_overlapping_steps_changes_neither(resumed: Any) -> None:
    assert losses(resumed["overlapped"]) == losses(resumed["saved_once"]) == losses(resumed["gathered"])
    assert losses(resumed["stopped"]) + losses(resumed["went_on"]) == losses(resumed["saved_once"])


def test_another_layout_goes_on(resumed: Any) -> None:
    rows = [row for row in resumed["other_layout"] if row["kind"] == "train"]
    assert [row["iteration"] for row in rows] == [7]
    assert rows[0]["consumed_samples"] == 56


def test_another_learning_rate_holds_from_the_next_step_on(resumed: Any) -> None:
    """Cosine from 2e-4 to 0 over 8 steps, 2 of them warm-up: after 7 steps 5/6 of the decay is done."""
    rows = [row for row in resumed["other_lr"] if row["kind"] == "train"]
    assert [row["iteration"] for row in rows] == [8]
    assert rows[0]["lr"] == pytest.approx(1e-4 * (1 + math.cos(math.pi * 5 / 6)))


def test_another_model_is_refused(resumed: Any) -> None:
    assert "rotary_base 10000.0 there, 5000.0 here" in resumed["other_model"]["error"]


def test_killed_and_started_again(tiny: TinyRun, resumed: Any) -> None:
    """kill -9 in the middle: the next start goes on from the newest checkpoint and loses nothing."""
    run = tiny.folder / "killed"
    arguments = [tiny.recipe, f"output_dir={run}", *DECAY, *PP2, "train.nproc_per_node=2", "train.train_iters=6"]
    arguments += ["train.save_interval=2"]
    command = [sys.executable, "-m", "megatron_ipt.cli.main", "train", *map(str, arguments)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    metrics = run / "train" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while b'"kind":"train","iteration":3' not in (metrics.read_bytes() if metrics.exists() else b""):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    _kill_with_children(process.pid)
    process.wait()
    ipt("train", *arguments)
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    assert losses(rows) == losses(resumed["straight"])
    assert [row["iteration"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    last = run / "train" / "checkpoints" / "iter_0000006"
    assert shards(last) == shards(tiny.folder / "straight_save" / "iter_0000006")


def _kill_with_children(pid: int) -> None:
    """What a machine that dies does: every process of the tree ends at once, with no time to clean up."""
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        process.kill()
