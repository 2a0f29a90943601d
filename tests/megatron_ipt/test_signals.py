"""A run that is told to stop: all ranks end after the same step, and what they reached is saved."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TinyRun, ipt, run_ranks
from torch.distributed.launcher.api import LaunchConfig

from data_prep.errors import UserError
from megatron_ipt.cli import pipeline, processes, train
from megatron_ipt.recipe import load_recipe

WORKER = Path(__file__).with_name("stop_worker.py")


@pytest.fixture(scope="module")
def stopped(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """For each job of the worker what its two ranks had, told in step 2 of 4."""
    folder = tmp_path_factory.mktemp("stopped")
    run_ranks(2, WORKER, tiny.recipe, folder)
    jobs = ("file_of_rank_0", "file_of_rank_1", "term_of_rank_0", "term_of_rank_1", "term_while_it_writes")
    return {job: [json.loads((folder / f"{job}.{rank}.json").read_text()) for rank in range(2)] for job in jobs} | {
        "folder": [folder]
    }


def steps(found: list[dict[str, Any]]) -> list[int]:
    return [row["iteration"] for row in found if row["kind"] == "train"]


def test_a_stop_file_that_only_rank_0_sees_ends_both_after_the_same_step(stopped: dict[str, list[Any]]) -> None:
    assert [steps(found) for found in stopped["file_of_rank_0"]] == [[1, 2], [1, 2]]
    for found in stopped["file_of_rank_0"]:
        assert [row["kind"] for row in found[-2:]] == ["checkpoint", "stopped"]
        assert (found[-1]["iteration"], found[-1]["reason"]) == (2, "stop_file")
    saved = stopped["folder"][0] / "file_of_rank_0" / "train" / "checkpoints"
    assert (saved / "latest_checkpointed_iteration.txt").read_text() == "2"


def test_only_rank_0_looks_for_the_file(stopped: dict[str, list[Any]]) -> None:
    assert [steps(found) for found in stopped["file_of_rank_1"]] == [[1, 2, 3, 4], [1, 2, 3, 4]]


@pytest.mark.parametrize("job", ["term_of_rank_0", "term_of_rank_1", "term_while_it_writes"])
def test_sigterm_of_any_rank_is_an_error_of_all_after_the_same_step(stopped: dict[str, list[Any]], job: str) -> None:
    told = "SIGTERM: ended from outside at iteration 2 of 4; it is saved: start again to go on"
    assert stopped[job] == [{"error": told}, {"error": told}]
    run = stopped["folder"][0] / job / "train"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (rows[-1]["kind"], rows[-1]["iteration"], rows[-1]["reason"]) == ("stopped", 2, "sigterm")
    assert (run / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == "2"
    assert [row["iteration"] for row in rows if row["kind"] == "checkpoint"][-1] == 2
    assert not list((run / "checkpoints").glob("*.partial"))


def test_a_stop_file_that_is_there_already_is_told_at_the_start(tiny: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    settings = [f"output_dir={tmp_path / 'run'}", f"train.stop_file={tmp_path / 'stop'}", "train.parity_gate=false"]
    lines = " ".join(ipt("train", tiny.recipe, *settings, "train.held_out=null").stdout.split())
    told = f"{tmp_path / 'stop'} is there already: the run ends after its first step; remove it if it is an old one"
    assert told.replace(" ", "") in lines.split("iteration")[0].replace(" ", "")


def test_a_stop_file_is_refused_where_further_steps_would_follow(tiny: TinyRun) -> None:
    with pytest.raises(UserError, match=r"train\.stop_file: is for `ipt train`"):
        pipeline.check(load_recipe(tiny.recipe, ["train.blend=null", "train.held_out=null", "train.stop_file=x"]))


def test_torchrun_gets_the_time_to_save_and_less_than_it_has_itself(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun is not started: its own configuration reads the environment that it would have had."""
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    given: dict[str, str] = {}

    @contextmanager
    def child(_: Any, environment: dict[str, str], stderr: Any) -> Iterator[Any]:
        given.update(environment)
        yield SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(processes, "child", child)
    train.launch(load_recipe(tiny.recipe, [f"output_dir={tmp_path}"]), tiny.recipe, [])
    monkeypatch.setattr(os, "environ", given)
    seconds = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1).shutdown_timeout
    assert seconds == 300
    assert 30 < seconds < processes.GRACE_SECONDS
