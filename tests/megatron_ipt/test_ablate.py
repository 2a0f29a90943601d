"""ipt ablate: bad studies told in a line, figures by hand, and a real study, ended, started again, and recomputed."""

from __future__ import annotations

import csv
import json
import math
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import environment, ipt, with_byte_tokenizer

from data_prep.blend import plan
from data_prep.errors import UserError
from data_prep.settings import BlendSettings, SourceSettings
from megatron_ipt.ablate.results import Results, RunResult, compare
from megatron_ipt.ablate.runs import changes, run_recipe
from megatron_ipt.ablate.shares import verified_draws
from megatron_ipt.ablate.study import Study
from megatron_ipt.cli.ablate import ablate
from megatron_ipt.data.stream import BlendStream
from megatron_ipt.recipe import Recipe, load_recipe

ARMS = {"raw": {"raw": 1.0}, "mix": {"augmented": 1.0, "raw": 2.5}}
SENTENCES = ["Mira kept bees on the roof.", "The river stood high in March.", "A price fell by a tenth."]
STEPS, BATCH, LENGTH = 7, 4, 32


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_recipe(folder: Path) -> Path:
    """Documents, three of them with a pair, and a recipe for a byte-level model of two narrow layers from scratch."""
    (folder / "empty").mkdir()
    tokenizer = with_byte_tokenizer(folder / "empty", folder / "tokenizer")
    documents = [{"id": f"d{n}", "text": f"House {n}. {SENTENCES[n % 3]} {SENTENCES[(n + 1) % 3]}"} for n in range(16)]
    pairs = [[{"question": f"Which house is number {n}?", "answer": f"House {n}."}] for n in range(3)]
    chains = [
        {"id": f"c{n}", "texts": [{"document_id": f"d{n}", "text": documents[n]["text"], "pairs": pairs[n]}]}
        for n in range(3)
    ]
    data = folder / "data"
    write_lines(data / "raw" / "train.jsonl", documents[:12])
    write_lines(data / "raw" / "held_out.jsonl", documents[12:])
    write_lines(data / "pairs" / "chains.jsonl", chains)
    write_lines(data / "pairs" / "chains.jsonl.leftover.jsonl", [])
    numbers = {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 4, "vocab_size": 257}
    batch = {"global_batch_size": BATCH, "micro_batch_size": 2, "seq_length": LENGTH, "eval_iters": 1}
    sections = {
        "name": "shared",
        "output_dir": str(data),
        "check": {},
        "render": {},
        "index": {"tokenizer": str(tokenizer)},
        "blend": {"seq_length": LENGTH, "sources": {"augmented": {"weight": 1}, "raw": {"weight": 1}}},
        "model": numbers,
        "train": {**batch, "train_iters": STEPS, "lr": 1e-2, "bf16": False, "log_interval": 3},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return path


def write_study(folder: Path, **changed: Any) -> Path:
    content = {"name": "houses", "output_dir": str(folder / "study"), "recipe": "recipe.yaml", "arms": ARMS}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**content, **changed}, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ablation")
    write_recipe(made)
    return made


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"arms": {"raw": {"raw": 1}}}, "1 arm compares nothing; name at least two under `arms`"),
        ({"arms": {"a": {"rwa": 1}, "b": {"raw": 1}}}, "arms.a.rwa: no source of recipe.yaml; did you mean 'raw'?"),
        ({"arms": {"a": {"raw": 0}, "b": {"raw": 1}}}, "arms.a: no source has a weight above 0; give one to"),
        ({"arms": {"a": {"raw": -1}, "b": {"raw": 1}}}, "arms.a.raw: -1 is no weight; give a number from 0 on"),
        ({"arms": {"a": {"raw": 1}, "b": {"raw": 9, "augmented": 0}}}, "arms a and b are one blend; give them other"),
        ({"arms": {"../a": {"raw": 1}, "b": {"augmented": 1}}}, "arms: '../a' is to be a folder's name; use letters"),
        ({"baseline": "row"}, "baseline: no arm 'row'; did you mean 'raw'?"),
        ({"seeds": [3, 3]}, "seeds: 3 stands there twice; give each seed once"),
        ({"seeds": [3]}, "seeds: 1 seed shows no noise; give at least two"),
        ({"recipe": "gone.yaml"}, "gone.yaml: no such file; give the path of a YAML file"),
        ({"overrides": ["train.save=elsewhere"]}, "train.save: is for `ipt train`"),
        ({"overrides": ["train.nproc_per_node=3"]}, "train.global_batch_size: 4 is no multiple of"),
        (
            {"overrides": ["train.tensor_model_parallel_size=3"]},
            "3 does not divide num_attention_heads (4); use one of",
        ),
        ({"sedes": [1, 2]}, "unknown key 'sedes'; did you mean 'seeds'?"),
    ],
)
def test_a_bad_study_is_refused_before_anything_runs(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    write_recipe(tmp_path)
    with pytest.raises(UserError) as error:
        ablate(write_study(tmp_path, **changed), [])
    assert told in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "study").exists() and not (tmp_path / "data" / "text").exists()


def test_the_command_tells_it_in_one_line(tmp_path: Path) -> None:
    done = ipt("ablate", write_study(tmp_path), "arms.mix.raw=0", "arms.mix.augmented=0", check=False)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {tmp_path / 'study.yaml'}: arms.mix: no source has a weight above 0; give one")


def a_run(arm: str, seed: int, bits: float) -> RunResult:
    return RunResult(arm, seed, bits, 8.0, 1.0, 100, 5, 20, 640, 1.0, ())


def a_study(**changed: Any) -> Study:
    arms = {"base": {"raw": 1.0}, "low": {"raw": 1.0, "augmented": 1.0}, "mixed": {"augmented": 1.0}}
    return Study.model_validate({"name": "s", "output_dir": "o", "recipe": "r", "arms": arms, **changed})


def test_arms_are_compared_seed_by_seed() -> None:
    values = {("base", 1): 2.0, ("base", 2): 3.0, ("low", 1): 1.5, ("low", 2): 2.75, ("mixed", 1): 2.25}
    runs = [a_run(arm, seed, bits) for (arm, seed), bits in {**values, ("mixed", 2): 2.5}.items()]
    base, low, mixed = compare(a_study(), runs)
    assert (base.mean, base.spread, base.differences, base.direction("base")) == (2.5, 1.0, (0.0, 0.0), "baseline")
    assert (low.mean, low.differences, low.difference) == (2.125, (-0.5, -0.25), -0.375)
    assert low.direction("base") == "lower with every seed"
    assert (mixed.spread, mixed.differences, mixed.direction("base")) == (0.25, (0.25, -0.5), "seeds disagree")
    assert mixed.difference_sd == pytest.approx(0.75 / math.sqrt(2))  # two values: their distance over the root of 2
    other = compare(a_study(baseline="low"), runs)
    assert [arm.difference for arm in other] == [0.375, 0.0, 0.25]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((2.0, 3.0), "equal"),
        ((2.0, 3.5), "seeds disagree"),  # equal with one seed is not higher with it
        ((2.5, 3.5), "higher with every seed"),
    ],
)
def test_what_the_seeds_agree_on(values: tuple[float, float], told: str) -> None:
    runs = [a_run(arm, seed, bits) for arm in ("base", "mixed") for seed, bits in ((1, 2.0), (2, 3.0))]
    runs += [a_run("low", seed, bits) for seed, bits in enumerate(values, 1)]
    base, low, _ = compare(a_study(), runs)
    assert (base.direction("base"), low.direction("base")) == ("baseline", told)


@pytest.mark.parametrize(("parameters", "smoke"), [(14_999_999, True), (15_000_000, False)])
def test_small_models_are_labelled(parameters: int, smoke: bool) -> None:
    results = Results("s", "a", (1, 2), parameters, True, 1, 1, (), ())
    assert results.smoke_test is smoke
    assert results.label.startswith("smoke test") is smoke


def test_a_run_is_the_recipe_with_the_arm_and_the_seed(tmp_path: Path) -> None:
    base = load_recipe(write_recipe(tmp_path))
    study = a_study(output_dir=str(tmp_path / "out"))
    assert study.runs()[:4] == [("base", 1), ("low", 1), ("mixed", 1), ("base", 2)]
    recipe = run_recipe(study, base, "mixed", 2, held_out_sequences=9)
    assert recipe.output_dir == tmp_path / "out" / "runs" / "mixed" / "seed-2"
    assert recipe.blend is not None and recipe.train is not None and recipe.index is None
    assert {name: source.weight for name, source in recipe.blend.sources.items()} == {"augmented": 1.0}
    assert (recipe.blend.seed, recipe.train.seed) == (2, 2)
    assert (recipe.train.eval_iters, recipe.train.log_interval) == (3, 1)  # 9 sequences in batches of 4; every step
    other = Recipe.model_validate({**recipe.model_dump(), "name": "another name"})
    assert changes(recipe, other) == []
    slower = recipe.model_copy(update={"train": recipe.train.model_copy(update={"lr": 0.5})})
    assert changes(recipe, slower) == ["train.lr 0.01 -> 0.5"]


def test_draws_that_do_not_fit_are_an_error(tmp_path: Path, write_dataset: Any) -> None:
    for first, name in enumerate(("one", "two"), 1):
        write_dataset(tmp_path / name, [[*range(first, first + 39), 0]] * 5)
    sources = {name: SourceSettings(prefix=tmp_path / name, weight=weight) for name, weight in (("one", 3), ("two", 1))}
    plan(BlendSettings(sources=sources, seq_length=16, train_samples=12), tmp_path)
    blend, weights = tmp_path / "blend.json", {"one": 3.0, "two": 1.0, "none": 0.0}
    right = [{"kind": "train", "samples": {"one": 5, "two": 1}}, {"kind": "train", "samples": {"one": 4, "two": 2}}]
    draws = {row.source: row for row in verified_draws(tmp_path, blend, weights, right, 12)}
    assert {name: (row.samples, row.planned_share, row.difference) for name, row in draws.items()} == {
        "one": (9, 0.75, 0.0),
        "two": (3, 0.25, 0.0),
    }
    wrong = [{"kind": "train", "samples": {"one": 10, "two": 2}}]
    with pytest.raises(UserError, match="training logged 10 samples of 'one', its stream gives 9"):
        verified_draws(tmp_path, blend, weights, wrong, 12)
    for others in ({"one": 2.0, "two": 1.0}, {"one": 3.0}):
        with pytest.raises(UserError, match="not the arm's weights"):
            verified_draws(tmp_path, blend, others, right, 12)
    extra = [*right, {"kind": "train", "samples": {"three": 1}}]
    with pytest.raises(UserError, match="training logged 13 samples of 12"):
        verified_draws(tmp_path, blend, weights, extra, 12)


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Path, str, dict[str, bytes]]:
    """A study ended by SIGTERM in its second training and started again: its folder, the second call's output, and the
    bytes of the first run's metrics when the first call ended."""
    study = write_study(folder)
    out = folder / "study"
    command = [sys.executable, "-m", "megatron_ipt.cli.main", "ablate", str(study)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    second = out / "runs" / "mix" / "seed-1" / "train" / "torchrun.log"
    deadline = time.monotonic() + 180
    while not second.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=90)
    assert process.returncode == 1
    assert told.strip().splitlines()[-1].startswith("error: SIGTERM: ended from outside")
    assert not (out / "results.json").exists()
    first = out / "runs" / "raw" / "seed-1" / "train" / "metrics.jsonl"
    return out, ipt("ablate", study).stdout, {str(first): first.read_bytes()}


def metrics(out: Path, arm: str, seed: int) -> list[dict[str, Any]]:
    path = out / "runs" / arm / f"seed-{seed}" / "train" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scores(out: Path, arm: str, seed: int) -> dict[int, dict[str, Any]]:
    return {row["iteration"]: row for row in metrics(out, arm, seed) if row["kind"] == "validation"}


def test_a_study_that_was_ended_goes_on_and_repeats_nothing(finished: tuple[Path, str, dict[str, bytes]]) -> None:
    out, stdout, before = finished
    states = Counter(re.findall(r"^(\w+): (runs|unchanged) ─", stdout, flags=re.MULTILINE))
    assert states == {
        **{(name, "unchanged"): 1 for name in ("check", "render", "index")},
        ("blend", "unchanged"): 4,
        ("train", "unchanged"): 1,
        ("train", "runs"): 3,
    }
    for path, content in before.items():
        assert Path(path).read_bytes() == content
    for arm in ARMS:
        for seed in (1, 2):
            steps = [row["iteration"] for row in metrics(out, arm, seed) if row["kind"] == "train"]
            assert steps == list(range(1, STEPS + 1))


def test_its_figures_are_those_of_its_runs(finished: tuple[Path, str, dict[str, bytes]], folder: Path) -> None:
    """Bits per byte from the loss and the held-out file: a token is a byte, and each document ends with one more."""
    out = finished[0]
    texts = [json.loads(line)["text"] for line in (folder / "data" / "raw" / "held_out.jsonl").read_text().splitlines()]
    size = sum(len(text.encode()) for text in texts)
    bits: dict[tuple[str, int], float] = {}
    for arm in ARMS:
        for seed in (1, 2):
            last = scores(out, arm, seed)[STEPS]
            assert last["tokens"] == size + len(texts) - 1
            bits[arm, seed] = last["loss"] / math.log(2) * (size + len(texts)) / size
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert (found["baseline"], found["held_out_bytes"], found["held_out_documents"]) == ("raw", size, len(texts))
    for row in found["arms"]:
        mine = [bits[row["arm"], seed] for seed in (1, 2)]
        deltas = np.subtract(mine, [bits["raw", seed] for seed in (1, 2)])
        assert row["bits_per_byte"] == pytest.approx(mine, rel=1e-12)
        assert row["mean"] == pytest.approx(np.mean(mine), rel=1e-12)
        assert row["differences"] == pytest.approx(list(deltas), rel=1e-9, abs=1e-12)
        assert row["sd"] == pytest.approx(np.std(mine, ddof=1), rel=1e-9)
        assert row["difference_sd"] == pytest.approx(np.std(deltas, ddof=1), rel=1e-9, abs=1e-12)
    rows = list(csv.DictReader((out / "results.csv").open(encoding="utf-8")))
    assert {(row["arm"], int(row["seed"])): float(row["bits_per_byte"]) for row in rows} == pytest.approx(bits)
    # embedding and output, then a layer: four square attention matrices, three of the feed-forward, two norms
    assert found["parameters"] == 2 * 257 * 32 + 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32)


def test_seeds_are_paired(finished: tuple[Path, str, dict[str, bytes]]) -> None:
    out = finished[0]
    starts = {(arm, seed): scores(out, arm, seed)[0]["loss"] for arm in ARMS for seed in (1, 2)}
    assert starts["raw", 1] == starts["mix", 1] != starts["raw", 2] == starts["mix", 2]
    orders = []
    for seed in (1, 2):
        stream = BlendStream(out / "runs" / "raw" / f"seed-{seed}" / "blend" / "blend.json")
        orders.append([stream.sample(index).tokens.tolist() for index in range(STEPS * BATCH)])
    assert orders[0] != orders[1]


def test_shares_are_what_the_stream_gave(finished: tuple[Path, str, dict[str, bytes]]) -> None:
    out = finished[0]
    samples = STEPS * BATCH
    found = {(row["arm"], row["seed"]): row for row in json.loads((out / "results.json").read_text())["runs"]}
    for arm, weights in ARMS.items():
        for seed in (1, 2):
            file = out / "runs" / arm / f"seed-{seed}" / "blend" / "blend.json"
            shares = json.loads(file.read_text())["phases"][0]["shares"]
            stream = BlendStream(file)
            drawn = Counter(stream.sample(index).source for index in range(samples))
            rows = found[arm, seed]["draws"]
            assert {row["source"]: row["samples"] for row in rows} == drawn
            for row, expected in zip(rows, np.array(shares) / sum(shares) * samples, strict=True):
                assert abs(row["samples"] - expected) < 1
                assert row["difference"] == pytest.approx(row["samples"] - expected)
                assert row["planned_share"] == pytest.approx(weights[row["source"]] / sum(weights.values()))
    assert {row["source"] for row in found["raw", 1]["draws"]} == {"raw"}


def test_table_and_page_say_what_it_is(finished: tuple[Path, str, dict[str, bytes]]) -> None:
    out, stdout, _ = finished
    page = (out / "ablation.html").read_text(encoding="utf-8")
    flat = " ".join(stdout.split())
    assert "smoke test" in flat and "poor estimate of noise" in flat
    assert "smoke test" in page and "poor estimate of noise" in page and "<svg" in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert "the same model: their bits per byte are equal to the last digit." in page
    picture = page[page.index("<svg") : page.index("</svg>")]
    texts = re.findall(r">([^<>]+)</text>", picture)
    assert {*ARMS, "seed 1", "seed 2", "held-out bits per byte"} <= set(texts)
    points = re.findall(r"<use [^>]*fill: var\(--series-1\)", picture)
    assert len(points) == 2 * (len(ARMS) + 1)  # a point an arm and seed, and the two of the legend
    for row in json.loads((out / "results.json").read_text())["runs"]:
        assert f"{row['bits_per_byte']:.4f}" in page and f"{row['bits_per_byte']:.4f}" in flat


def test_runs_are_ordinary_and_others_settings_refused(
    finished: tuple[Path, str, dict[str, bytes]], folder: Path
) -> None:
    out = finished[0]
    run = out / "runs" / "mix" / "seed-2"
    stdout = ipt("run", run / "recipe.yaml", "--dry-run").stdout
    assert "blend: unchanged" in stdout and "train: unchanged" in stdout
    done = ipt("ablate", folder / "study.yaml", "arms.mix.raw=3", check=False)
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert "mix/seed-1: holds a run of other settings (blend.sources.raw.weight 2.5 -> 3.0)" in line
    assert "delete that folder" in line
    assert json.loads((out / "results.json").read_text())["arms"][1]["weights"]["raw"] == 2.5
