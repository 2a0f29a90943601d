"""kill -9 in the middle of a save: the checkpoint before is whole, and the next start goes on from it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TinyRun, environment
from forks import warm_python


def newest(saves: Path) -> int:
    tracker = saves / "latest_checkpointed_iteration.txt"
    return int(tracker.read_text(encoding="utf-8")) if tracker.exists() else 0


@pytest.mark.parametrize("behind", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_run_killed_while_it_saves_goes_on_from_the_save_before(tiny: TinyRun, tmp_path: Path, behind: bool) -> None:
    arguments = [f"output_dir={tmp_path}", "train.held_out=null", "train.parity_gate=false", "train.save_interval=1"]
    arguments += [f"train.async_save={str(behind).lower()}", "train.most_recent_k=2"]
    command = [sys.executable, "-m", "megatron_ipt.pretrain", "--recipe", str(tiny.recipe), *arguments]
    process = subprocess.Popen([*command, "train.train_iters=10"], env=environment(), stdout=subprocess.DEVNULL)
    saves, deadline = tmp_path / "train" / "checkpoints", time.monotonic() + 300
    while newest(saves) < 2 or not list(saves.glob("iter_*.partial")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.wait()
    reached = newest(saves)
    checkpoint = saves / f"iter_{reached:07d}"
    files = json.loads((checkpoint / "integrity.json").read_text(encoding="utf-8"))["files"]
    assert {"run_card.json", ".metadata", "__0_0.distcp"} <= set(files)
    for name, digest in files.items():
        assert hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() == digest
    again = [warm_python(), *command[1:], f"train.train_iters={reached + 1}"]
    subprocess.run(again, env=environment(), stdout=subprocess.DEVNULL, check=True)
    rows = (tmp_path / "train" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [row["iteration"] for row in map(json.loads, rows) if row["kind"] == "train"]
    assert steps == list(range(1, reached + 2))
    assert newest(saves) == reached + 1
    assert not list(saves.glob("*.partial"))
