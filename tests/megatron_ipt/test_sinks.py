"""What goes to TensorBoard and Weights & Biases is what the lines of metrics.jsonl say; a bar on a terminal only."""

from __future__ import annotations

import io
import json
import os
import subprocess
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


def test_a_run_that_starts_anew_hides_all_points_of_the_one_before(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train = TrainSettings.model_validate({**BASE, "tensorboard_dir": tmp_path / "tb"})
    for iterations in (range(6), range(2)):
        further = sinks.asked_for(train, "name", tmp_path, 0)
        path = tmp_path / "metrics.jsonl"
        write(Metrics(path, is_main=True, resumed_from=0, train_iters=9, sinks=further), iterations, 10.0)
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(0, 10.0), (1, 11.0)]


class StandIn(ModuleType):
    """Weights & Biases as a library that writes down how it is called."""

    Error = type("Error", (Exception,), {})

    def __init__(self) -> None:
        super().__init__("wandb")
        self.told: list[Any] = []

    def init(self, **settings: Any) -> StandIn:
        if settings["project"] == "forbidden":
            raise self.Error("api_key not configured")
        self.told.append(settings)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.told.append((name, step_metric))

    def log(self, data: dict[str, float]) -> None:
        self.told.append(data)

    def finish(self) -> None:
        self.told.append("finished")


def wandb_lines(folder: Path, resumed_from: int = 0) -> None:
    train = TrainSettings.model_validate({**BASE, "wandb_project": "ours"})
    further = sinks.asked_for(train, "a run", folder, resumed_from)
    path = folder / "metrics.jsonl"
    metrics = Metrics(path, is_main=True, resumed_from=resumed_from, train_iters=9, sinks=further)
    write(metrics, range(resumed_from + 1, resumed_from + 3), 3.0)


CURVES = {
    "train/loss": 4.0,
    "train/grad_norm": 1.0,
    "train/lr": 1e-3,
    "train/tokens_per_second": 5.0,
    "train/step_seconds": 1.0,
    "train/skipped/spike": 0.0,
    "train/skipped/no_label": 0.0,
    "train/skipped/not_finite": 1.0,
    "train/sources/domain/loss_tokens": 0.0,
    "train/sources/domain/consumed_tokens": 64.0,
    "train/sources/domain/epochs": 0.5,
}
SCORED = {"validation/held_out/loss": 3.0, "validation/held_out/bits_per_byte": 0.5, "validation/held_out/tokens": 7.0}
LINES = [{**CURVES, "iteration": 1}, {**CURVES, "train/loss": 5.0, "iteration": 2}, {**SCORED, "iteration": 2}]


def test_weights_and_biases_gets_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run goes on in the same run there, one that starts anew in another; a refusal is a line."""
    library = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", library)
    wandb_lines(tmp_path)
    started, axis, *lines = library.told
    assert started.items() >= {"project": "ours", "name": "a run", "resume": "allow", "dir": str(tmp_path)}.items()
    assert (axis, lines) == (("*", "iteration"), [*LINES, "finished"])
    wandb_lines(tmp_path, resumed_from=2)
    wandb_lines(tmp_path)
    first, resumed, anew = (told["id"] for told in library.told if "project" in told)
    assert first == resumed != anew
    train = TrainSettings.model_validate({**BASE, "wandb_project": "forbidden"})
    with pytest.raises(UserError, match="does not start \\(api_key not configured\\); run `wandb login`"):
        sinks.asked_for(train, "a run", tmp_path, 0)


def test_weights_and_biases_writes_the_lines(tmp_path: Path) -> None:
    """The library itself, without its service: what stands in the file that `wandb sync` sends."""
    pytest.importorskip("wandb")
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    code = "from test_sinks import *; wandb_lines(Path(sys.argv[1])); wandb_lines(Path(sys.argv[1]), 1)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment, cwd=Path(__file__).parent)
    runs = [wandb_file(path) for path in sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))]
    known = (tmp_path / "wandb_id.txt").read_text()
    assert [(run.run_id, run.project, run.display_name) for run, _ in runs] == [(known, "ours", "a run")] * 2
    assert runs[0][1] == LINES
    assert [line["iteration"] for line in runs[1][1]] == [2, 3, 3]


def wandb_file(path: Path) -> tuple[Any, list[dict[str, float]]]:
    """The run and its lines in a .wandb file: protobuf records in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    lines, run = [], None
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, whole = wandb_internal_pb2.Record.FromString(whole), b""
            run = record.run if record.WhichOneof("record_type") == "run" else run
            found = {item.key or "/".join(item.nested_key): float(item.value_json) for item in record.history.item}
            if found:
                lines.append({name: value for name, value in found.items() if not name.startswith("_")})
    return run, lines


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
