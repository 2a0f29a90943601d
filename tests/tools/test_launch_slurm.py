"""tools/launch_slurm.sbatch over real processes: Slurm's three commands are stand-ins, all else is not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from forks import environment, warm_python
from torch.distributed.launcher.api import LaunchConfig

from data_prep.blend import plan as plan_blend
from data_prep.settings import BlendSettings, SourceSettings

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "launch_slurm.sbatch"
STAND_IN = Path(__file__).with_name("slurm_stand_in.py")
ITERATIONS = 8

SLOW = '''"""Delays steps and the commit of a checkpoint; python imports this file before anything else."""
import importlib.util, os, sys, time

DELAYS = {
    "megatron_ipt.mcore.checkpoint_folder": ("commit", "SLOW_SAVE"),
    "megatron_ipt.data.loader": ("read_step", "SLOW_STEP"),
}


class Delay:
    def find_spec(self, name, path=None, target=None):
        if name not in DELAYS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        execute, (function, seconds) = spec.loader.exec_module, DELAYS[name]

        def exec_module(module):
            execute(module)
            quick = getattr(module, function)

            def slow(*args, **kwargs):
                time.sleep(float(os.environ.get(seconds, 0)))
                return quick(*args, **kwargs)

            setattr(module, function, slow)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Delay())
'''

# stands for python: says where; as torchrun notes its environment, and saves one iteration once the stop file is
# there, or fails
FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
  *--where*) echo "greetings from an image"; echo "8 $FAKE_SLURM/save"; exit ;;
  *torch.distributed.run*) ;;
  *) exit 2 ;;
esac
env -0 > "$FAKE_SLURM/environment"
[[ -z "${FAILS:-}" ]] || { echo "a fault of the run"; exit 1; }
touch "$FAKE_SLURM/started"
until [[ -e "$FAKE_SLURM/save/stop" ]]; do sleep 0.02; done
rm "$FAKE_SLURM/started"
latest="$FAKE_SLURM/save/latest_checkpointed_iteration.txt"
echo $(($(cat "$latest" 2>/dev/null || echo 0) + 1)) > "$latest"
"""


@dataclass(frozen=True)
class Slurm:
    """A machine with Slurm's commands; `folder` is where they note things and where jobs run."""

    folder: Path

    def sbatch(
        self, *arguments: object, plan: Sequence[Sequence[Mapping[str, Any]]] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        (self.folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        paths = [str(self.folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
        settings = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": ":".join(paths),
            "FAKE_SLURM": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "NPROC_PER_NODE": "1",
            "MASTER_PORT": str(free_port()),
            "PYTHON": sys.executable,
        }
        return subprocess.run(
            [self.folder / "bin" / "sbatch", *map(str, arguments)],
            env={**os.environ, **settings, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )

    @property
    def log(self) -> str:
        return (self.folder / "ipt-train-4242.log").read_text(encoding="utf-8")

    def said(self) -> list[str]:
        """The script's own lines, without their times."""
        return [line.split("launch_slurm: ")[1] for line in self.log.splitlines() if "launch_slurm: " in line]

    def sruns(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "srun.jsonl").read_text(encoding="utf-8").splitlines()]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "srun", "scontrol"):
        command = tmp_path / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} {name} "$@"\n', encoding="utf-8")
        command.chmod(0o755)
    (tmp_path / "sitecustomize.py").write_text(SLOW, encoding="utf-8")
    fake = tmp_path / "fake_python"
    fake.write_text(FAKE_PYTHON, encoding="utf-8")
    fake.chmod(0o755)
    return Slurm(tmp_path)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, write_dataset: Any) -> Path:
    """A model of fresh weights, small enough that starting torch is most of a run."""
    folder = tmp_path_factory.mktemp("slurm")
    starts, lengths = np.random.default_rng(5).integers(4, 60, (2, 40))
    documents = [
        [*((start + np.arange(length)) % 63 + 1).tolist(), 0] for start, length in zip(starts, lengths, strict=True)
    ]
    write_dataset(folder / "counting", documents, vocab_size=64)
    sources = {"counting": SourceSettings(prefix=folder / "counting", weight=1)}
    plan_blend(BlendSettings(sources=sources, seq_length=32, train_samples=4 * ITERATIONS), folder / "blend")
    sections = {
        "name": "slurm",
        "output_dir": str(folder / "run"),
        "model": {
            **{"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 4},
            **{"num_query_groups": 2, "vocab_size": 64},
        },
        "train": {
            **{"blend": str(folder / "blend" / "blend.json"), "seq_length": 32, "global_batch_size": 4},
            **{"train_iters": ITERATIONS, "lr": 1e-2, "lr_decay_style": "constant", "save_interval": 5},
            **{"overlap_grad_reduce": True, "overlap_param_gather": True},
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def straight(recipe: Path) -> Path:
    """The folder of the run that nothing interrupts, on one machine."""
    command = [sys.executable, "-m", "megatron_ipt.cli.main", "train", str(recipe), "train.nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return recipe.parent / "run" / "train"


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def trained(folder: Path) -> list[tuple[int, float]]:
    return [(row["iteration"], row["loss"]) for row in rows(folder) if row["kind"] == "train"]


def shards(checkpoint: Path) -> dict[str, str]:
    files: dict[str, str] = json.loads((checkpoint / "integrity.json").read_text(encoding="utf-8"))["files"]
    return {name: digest for name, digest in files.items() if name.endswith(".distcp")}


@pytest.mark.long
@pytest.mark.parametrize("seconds", [3, 45])
def test_two_interruptions_with_a_slow_save_end_in_the_bytes_of_none(
    slurm: Slurm, recipe: Path, straight: Path, seconds: int
) -> None:
    """Two nodes.  First try: the limit comes near in step 2.  Second: SIGTERM to all of the step while it saves."""
    run = slurm.folder / "run" / "train"
    near = {"signal": "SIGUSR1", "to": "shell", "file": str(run / "metrics.jsonl"), "text": '"iteration":1,'}
    ended = {"signal": "SIGTERM", "to": "step", "file": str(run / "checkpoints" / "iter_0000005.partial")}
    done = slurm.sbatch(
        *("--nodes=2", SCRIPT, recipe, f"output_dir={slurm.folder / 'run'}"),
        plan=[[near], [ended]],
        SLOW_SAVE=str(seconds),
        SLOW_STEP="0.25",
    )
    assert done.returncode == 0, slurm.log + done.stderr
    assert slurm.said()[-1] == "finished"
    assert slurm.said().count("queued again") == 2

    found = rows(run)
    stops = [(row["iteration"], row["reason"]) for row in found if row["kind"] == "stopped"]
    assert [reason for _, reason in stops] == ["stop_file", "sigterm"]
    assert 1 <= stops[0][0] < 5 and stops[1][0] == 5
    saved = [(row["iteration"], row["seconds"] > seconds) for row in found if row["kind"] == "checkpoint"]
    assert saved == [(stops[0][0], True), (5, True), (ITERATIONS, True)]  # one save a stop, each as slow as was set

    assert [iteration for iteration, _ in trained(run)] == list(range(1, ITERATIONS + 1))
    assert trained(run) == trained(straight)
    last = f"checkpoints/iter_{ITERATIONS:07d}"
    assert shards(run / last) == shards(straight / last) != {}


def test_where_names_the_end_and_the_folder_and_starts_nothing(recipe: Path, tmp_path: Path) -> None:
    command = [warm_python(), "-m", "megatron_ipt.cli.main", "train", str(recipe), f"output_dir={tmp_path}", "--where"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment("megatron"), check=True)
    assert done.stdout == f"{ITERATIONS} {tmp_path}/train/checkpoints\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("nodes", "override", "line"),
    [
        # 3 nodes of one process: three replicas do not divide a batch of 4
        (
            3,
            "train.lr=1e-3",
            "error: train.global_batch_size: 4 is no multiple of micro_batch_size x data-parallel size",
        ),
        (
            2,
            "train.optimizer_config={beta: 1}",
            "error: train.optimizer_config.beta: OptimizerConfig has no such field",
        ),
    ],
)
def test_a_mistake_in_the_recipe_ends_the_job_with_one_line(
    slurm: Slurm, recipe: Path, nodes: int, override: str, line: str
) -> None:
    done = slurm.sbatch(f"--nodes={nodes}", SCRIPT, recipe, f"output_dir={slurm.folder / 'run'}", override)
    assert done.returncode == 1
    assert len(slurm.sruns()) == 1
    assert slurm.said() == []
    (told,) = slurm.log.strip().splitlines()
    assert told.startswith(line)
    assert not (slurm.folder / "run").exists() and not (slurm.folder / "requeue").exists()


def test_two_tries_in_a_row_without_progress_are_the_end(slurm: Slurm) -> None:
    done = slurm.sbatch(SCRIPT, "r.yaml", PYTHON=str(slurm.folder / "fake_python"), FAILS="1")
    assert done.returncode == 1
    told = "two tries in a row saved nothing after iteration 0 of 8: not queued again; read the log above"
    assert [told in line for line in slurm.log.splitlines()].count(True) == 1
    assert slurm.said()[-1] == told
    assert slurm.log.count("a fault of the run") == 2


def test_the_batch_shell_that_died_counts_as_a_try(slurm: Slurm) -> None:
    """A node that dies takes the script along; Slurm queues the job again by itself."""
    save = slurm.folder / "save"
    save.mkdir()
    (save / "slurm_tries").write_text("4242 1 0\n", encoding="utf-8")
    done = slurm.sbatch(SCRIPT, "r.yaml", PYTHON=str(slurm.folder / "fake_python"), FAILS="1")
    assert done.returncode == 1
    assert slurm.log.count("a fault of the run") == 1


def test_progress_and_a_new_job_set_the_count_back(slurm: Slurm) -> None:
    save = slurm.folder / "save"
    save.mkdir()
    for state in ("4241 2 0", "4242 2 0"):  # another job's; ours, but the checkpoint is of iteration 1 by now
        (save / "slurm_tries").write_text(state + "\n", encoding="utf-8")
        done = slurm.sbatch(SCRIPT, "r.yaml", PYTHON=str(slurm.folder / "fake_python"), FAILS="1")
        assert done.returncode == 1
        (save / "latest_checkpointed_iteration.txt").write_text("1", encoding="utf-8")
    assert slurm.log.count("a fault of the run") == 4
    assert slurm.said().count("queued again") == 2


def test_the_limit_queues_again_until_train_iters_and_old_stop_files_do_not_count(slurm: Slurm) -> None:
    save = slurm.folder / "save"
    save.mkdir()
    (save / "latest_checkpointed_iteration.txt").write_text("5", encoding="utf-8")
    (save / "stop").touch()
    near = {"signal": "SIGUSR1", "to": "shell", "file": str(slurm.folder / "started")}
    done = slurm.sbatch(SCRIPT, "r.yaml", PYTHON=str(slurm.folder / "fake_python"), plan=[[near]] * 3)
    assert done.returncode == 0
    begins = [line.split(", ")[1] for line in slurm.said() if line.startswith("try ")]
    assert begins == [f"iteration {number} of 8" for number in (5, 6, 7)]
    assert slurm.said()[-1] == "finished"
    assert not (save / "stop").exists()


def test_a_stop_by_hand_is_not_queued_again(slurm: Slurm) -> None:
    hand = f"until [ -e {slurm.folder}/started ]; do sleep 0.02; done; touch {slurm.folder}/save/stop"
    with subprocess.Popen(["sh", "-c", hand]):
        done = slurm.sbatch(SCRIPT, "r.yaml", PYTHON=str(slurm.folder / "fake_python"))
    assert done.returncode == 0
    assert slurm.said()[-1] == "stopped by hand; submit it again to go on"
    assert not (slurm.folder / "requeue").exists()


def test_a_container_holds_the_run_and_the_question_before_it(slurm: Slurm) -> None:
    settings = {"CONTAINER_IMAGE": "image.sqsh", "CONTAINER_MOUNTS": "/data", "FAILS": "1"}
    slurm.sbatch("--nodes=3", SCRIPT, "r.yaml", "a.b=c d", PYTHON=str(slurm.folder / "fake_python"), **settings)
    asked, run = slurm.sruns()[:2]
    for found in (asked, run):
        assert found["options"]["container-image"] == "image.sqsh"
        assert found["options"]["container-mounts"] == f"{slurm.folder},/data"
    assert (asked["options"]["nodes"], run["options"]["nodes"]) == ("1", "3")
    assert run["command"][-3:] == ["r.yaml", "a.b=c d", f"train.stop_file={slurm.folder}/save/stop"]


def test_without_a_recipe_it_says_how_it_is_called(slurm: Slurm) -> None:
    assert slurm.sbatch(SCRIPT).returncode != 0
    assert "usage: sbatch" in slurm.log


@pytest.mark.parametrize(("given", "seconds"), [({}, 540), ({"SHUTDOWN_TIMEOUT": "77"}, 77)])
def test_torchrun_gets_the_time_to_save_and_ends_before_the_limit(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], seconds: int
) -> None:
    """Else Slurm's SIGKILL comes first; 600 s is what --signal leaves, 30 s torchrun's own timeout."""
    slurm.sbatch(SCRIPT, "r.yaml", PYTHON=str(slurm.folder / "fake_python"), FAILS="1", **given)
    lines = (slurm.folder / "environment").read_bytes().decode().split("\0")
    for name, _, value in (line.partition("=") for line in lines if line.startswith("TORCH_ELASTIC")):
        monkeypatch.setenv(name, value)
    assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1).shutdown_timeout == seconds
    assert 30 < seconds < 600
