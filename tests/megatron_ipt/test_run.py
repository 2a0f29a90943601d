"""`ipt run` over every arrow behind synthesis, with a tiny model: what runs, what is reused, what a change costs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TinyRun, environment, ipt, with_byte_tokenizer

from data_prep.settings import SynthesizeSettings
from megatron_ipt.cli import pipeline, steps
from megatron_ipt.recipe import Recipe

STEPS = ["check", "render", "index", "blend", "baseline", "train", "export", "evaluate", "report"]
PP2 = ["train.nproc_per_node=2", "train.pipeline_model_parallel_size=2"]
SENTENCES = [
    "Mira kept bees on the roof.",
    "The river stood high in March.",
    "A price fell by a tenth.",
    "Two hives were weak.",
]


@pytest.fixture(scope="module")
def recipe(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    model = with_byte_tokenizer(tiny.hf, folder / "model")
    documents = [{"id": f"d{n}", "text": f"House {n}. {SENTENCES[n % 4]} {SENTENCES[(n + 1) % 4]}"} for n in range(12)]
    chains = [
        {"id": f"c{n}", "texts": [{"document_id": f"d{n}", "text": documents[n]["text"], "pairs": pairs(n)}]}
        for n in range(3)
    ]
    write(folder / "run" / "raw" / "train.jsonl", documents[:10])
    write(folder / "run" / "raw" / "held_out.jsonl", documents[10:])
    write(folder / "run" / "pairs" / "chains.jsonl", chains)
    write(folder / "run" / "pairs" / "chains.jsonl.leftover.jsonl", [])
    train = {
        "global_batch_size": 4,
        "seq_length": 64,
        "train_iters": 2,
        "lr": 1e-3,
        "eval_iters": 1,
        "lr_decay_iters": 9,
    }
    sections: dict[str, Any] = {
        "name": "tiny",
        "output_dir": str(folder / "run"),
        "check": {},
        "render": {},
        "index": {"tokenizer": str(model)},
        "blend": {
            "seq_length": 64,
            "refuse_epochs": 10_000,
            "sources": {"augmented": {"weight": 1}, "raw": {"weight": 1}},
        },
        "model": {"load_hf": str(model)},
        "train": train,
        "evaluate": {"max_length": 64, "prefix_token": "<eod>"},
        "report": {},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return path


def pairs(number: int) -> list[dict[str, str]]:
    """One pair that its text supports, one that it does not."""
    grounded = {"question": f"Which house is number {number}?", "answer": f"House {number}."}
    return [grounded, {"question": f"Why is house {number} known?", "answer": "Zebras walked through, surely."}]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def states(output: str) -> dict[str, str]:
    rows = [row.split() for row in output.splitlines() if ": " in row and row.endswith("──")]
    return {row[0].rstrip(":"): row[1] for row in rows if row[0].rstrip(":") in STEPS}


def test_every_step_runs_then_none(recipe: Path) -> None:
    first = ipt("run", recipe)
    assert states(first.stdout) == dict.fromkeys(STEPS, "runs")
    run = recipe.parent / "run"
    assert "bits per byte" in (run / "report.html").read_text(encoding="utf-8")
    summary = json.loads((run / "checked" / "chains.jsonl.summary.json").read_text(encoding="utf-8"))
    assert (summary["in"], summary["kept"]) == (6, 3)
    assert sum(summary["dropped"]["grounding"].values()) == 3
    assert states(ipt("run", recipe).stdout) == dict.fromkeys(STEPS, "unchanged")
    for step in ("evaluate", "report"):  # no other test of a few seconds starts these with all of their imports
        ipt("run", recipe, "--only", step, fresh=True)


@pytest.mark.parametrize(
    ("chosen", "model"),
    [
        ({}, "run/model"),
        ({"preset": "paper"}, None),  # which the room of synthesis takes for the authors'
        ({"preset": "paper", "model": "mine"}, "mine"),
        ({"engine": "rules"}, None),
        ({"engine": "rules", "model": "mine"}, "mine"),
    ],
)
def test_the_fetched_model_writes_pairs_where_no_other_is_named(
    chosen: dict[str, Any], model: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("run/model", "mine"):
        Path(folder).mkdir(parents=True)
        Path(folder, "config.json").touch()
    asked: list[Path | None] = []
    monkeypatch.setattr(steps, "synthesize", lambda settings, inputs, given, out, replace: asked.append(given))
    recipe = Recipe(name="r", output_dir=Path("run"), synthesize=SynthesizeSettings(**chosen))
    context = pipeline.Context(recipe, Path("r.yaml"), [])
    (step,) = (step for step in pipeline.STEPS if step.name == "synthesize")
    step.action(context)
    expected = None if model is None else Path(model)
    files = [expected / "config.json"] if expected else []
    assert asked == [expected] and step.inputs(context) == [context.paths.documents, *files]


def test_places_that_only_train_knows_are_refused(recipe: Path, tmp_path: Path) -> None:
    done = ipt("run", recipe, f"train.save={tmp_path}", check=False)
    assert done.returncode == 1
    assert "train.save: is for `ipt train`" in done.stderr


def test_a_run_that_is_ended_ends_its_children_and_does_later_only_what_is_left(recipe: Path) -> None:
    psutil = pytest.importorskip("psutil")
    arguments = [recipe, "train.train_iters=400", "train.save_interval=4", *PP2]
    command = [sys.executable, "-m", "megatron_ipt.cli.main", "run", *map(str, arguments)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    latest = recipe.parent / "run" / "train" / "checkpoints" / "latest_checkpointed_iteration.txt"
    deadline = time.monotonic() + 120
    while int(latest.read_text()) < 4:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=90)
    assert process.returncode == 1
    assert told.strip().splitlines()[-1].startswith("error: SIGTERM: ended from outside")
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    reached = int(latest.read_text())
    rows = [json.loads(row) for row in latest.parents[1].joinpath("metrics.jsonl").read_text().splitlines()]
    assert (rows[-1]["kind"], rows[-1]["reason"], rows[-1]["iteration"]) == ("stopped", "sigterm", reached)
    assert [row["iteration"] for row in rows if row["kind"] == "train"][-1] == reached  # no step was lost

    further = states(ipt("run", recipe, f"train.train_iters={reached + 1}").stdout)
    kept = {"check": "unchanged", "render": "unchanged", "index": "unchanged", "baseline": "unchanged"}
    assert kept.items() <= further.items()
    assert further["train"] == further["export"] == further["evaluate"] == further["report"] == "runs"
    rows = [json.loads(row) for row in latest.parents[1].joinpath("metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows if row["kind"] == "train"] == list(range(1, reached + 2))
