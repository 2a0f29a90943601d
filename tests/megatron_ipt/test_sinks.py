"""What goes to TensorBoard and Weights & Biases is what the lines of metrics.jsonl say; a bar on a terminal only."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from data_prep.errors import UserError
from megatron_ipt.settings import TrainSettings
from megatron_ipt.training import progress, sinks
from megatron_ipt.training.metrics import Metrics

BASE = {"seq_length": 8, "train_iters": 9, "global_batch_size": 4, "lr": 1e-3}
SKIPPED = {"spike": 0, "no_label": 0, "not_finite": 1}
SOURCE = {"kind": "raw", "loss": None, "loss_tokens": 0, "consumed_tokens": 64, "epochs": 0.5}


def write(metrics: Metrics, iterations: range, loss: float) -> None:
    for iteration in iterations:
        figures = {
            "loss": loss + iteration,
            "grad_norm": 1.0,
            "lr": 1e-3,
            "tokens_per_second": 5.0,
            "step_seconds": 1.0,
        }
        metrics.write("train", iteration, **figures, skipped=SKIPPED, sources={"domain": SOURCE})
    metrics.write("validation", iterations[-1], name="held_out", loss=loss, bits_per_byte=0.5, tokens=7)
    metrics.close()


def test_the_event_files_hold_the_lines_also_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train = TrainSettings.model_validate({**BASE, "tensorboard_dir": tmp_path / "tb"})
    for resumed_from, iterations, loss in ((0, range(1, 6), 10.0), (3, range(4, 7), 20.0)):
        further = sinks.asked_for(train, "name", tmp_path, resumed_from)
        path = tmp_path / "metrics.jsonl"
        write(Metrics(path, is_main=True, resumed_from=resumed_from, train_iters=9, sinks=further), iterations, loss)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    written = {(row["iteration"], row["loss"]) for row in rows if row["kind"] == "train"}
    assert written == {(1, 11), (2, 12), (3, 13), (4, 24), (5, 25), (6, 26)}
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert {(event.step, event.value) for event in events.Scalars("train/loss")} == written
    assert {event.value for event in events.Scalars("train/skipped/not_finite")} == {1.0}
    assert [event.value for event in events.Scalars("validation/held_out/bits_per_byte")] == [0.5]
    assert "train/sources/domain/loss" not in events.Tags()["scalars"]  # no token of it, no point
    assert "train/sources/domain/epochs" in events.Tags()["scalars"]


def test_weights_and_biases_gets_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is a stand-in that writes down how it is called."""
    told: list[Any] = []

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            told.append((step, values["train/loss" if "train/loss" in values else "validation/held_out/loss"]))

        def finish(self) -> None:
            told.append("finished")

    library = ModuleType("wandb")
    library.init = lambda **settings: told.append(settings) or Run()  # type: ignore[attr-defined,func-returns-value]
    monkeypatch.setitem(sys.modules, "wandb", library)
    train = TrainSettings.model_validate({**BASE, "wandb_project": "ours"})
    further = sinks.asked_for(train, "run-1", tmp_path, 0)
    write(Metrics(tmp_path / "m.jsonl", is_main=True, resumed_from=0, train_iters=9, sinks=further), range(1, 3), 3.0)
    started = {"project": "ours", "id": "run-1", "name": "run-1", "resume": "allow", "dir": str(tmp_path)}
    assert told == [started, (1, 4.0), (2, 5.0), (2, 3.0), "finished"]


@pytest.mark.parametrize(("setting", "library"), [("tensorboard_dir", "tensorboard"), ("wandb_project", "wandb")])
def test_a_library_that_is_missing_is_one_line(setting: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    sinks.check(TrainSettings.model_validate(BASE))  # nobody asks: nothing is missing
    with pytest.raises(UserError, match=rf"train\.{setting}: {library} is not installed; pip install {library}"):
        sinks.check(TrainSettings.model_validate({**BASE, setting: "x"}))


def bar(*, is_main: bool, terminal: bool) -> str:
    """Resumed at step 2 of 10, two steps of 30 s."""
    out, now = io.StringIO(), [0.0]
    console = Console(file=out, force_terminal=terminal, width=100)
    with progress.shown(2, 10, is_main=is_main, console=console, get_time=lambda: now[0]) as show:
        for step in (3, 4):
            now[0] += 30.0
            show(step, 2.5)
    return out.getvalue()


def test_the_bar_tells_steps_loss_and_the_time_left() -> None:
    last = bar(is_main=True, terminal=True)
    assert "4/10" in last and "loss 2.5000" in last
    assert "0:01:00" in last and "0:03:00" in last  # gone, and six steps of 30 s to come


@pytest.mark.parametrize(("is_main", "terminal"), [(False, True), (True, False)])
def test_there_is_no_bar_on_other_ranks_or_in_a_file(is_main: bool, terminal: bool) -> None:
    assert bar(is_main=is_main, terminal=terminal) == ""
