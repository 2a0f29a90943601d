"""The runs of a study -> held-out bits per byte by arm and seed, paired differences, and the noise between seeds.

The figure of a run is its own last validation: the whole held-out set, each token but the first a label once, under the
live model.  It is exact and costs no export; `ipt evaluate` would score a document in other windows.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

from data_prep.errors import UserError
from data_prep.manifest import read_manifest, write_json
from data_prep.readers import atomic_file
from megatron_ipt.ablate.runs import run_folder
from megatron_ipt.ablate.shares import SourceDraws, verified_draws
from megatron_ipt.ablate.study import Study
from megatron_ipt.architecture import Architecture
from megatron_ipt.paths import RunPaths
from megatron_ipt.recipe import load_recipe
from megatron_ipt.training.metrics import read_metrics

RESULTS_FORMAT_VERSION: Final = 1
SMOKE_TEST_PARAMETERS = 15_000_000
"""Models smaller than this decide nothing about a blend for larger ones."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run.  Bits per byte of the held-out set before the first step and after the last; `loss` in nats a token."""

    arm: str
    seed: int
    bits_per_byte: float
    bits_per_byte_at_start: float
    loss: float
    held_out_tokens: int
    iterations: int
    samples: int
    tokens: int
    seconds: float
    draws: tuple[SourceDraws, ...]


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm over the seeds, in their order.  `differences` are to the baseline's run with the same seed.

    `spread` is the largest minus the smallest over seeds, `sd` their sample standard deviation, of the arm itself;
    `difference_sd` is that of the paired differences.
    """

    arm: str
    weights: dict[str, float]
    bits_per_byte: tuple[float, ...]
    mean: float
    spread: float
    sd: float
    differences: tuple[float, ...]
    difference: float
    difference_sd: float

    def direction(self, baseline: str) -> str:
        """What the seeds agree on against the arm of that name; no claim beyond them."""
        if self.arm == baseline:
            return "baseline"
        if not any(self.differences):
            return "equal"
        if all(value < 0 for value in self.differences):
            return "lower with every seed"
        return "higher with every seed" if all(value > 0 for value in self.differences) else "seeds disagree"


@dataclass(frozen=True, slots=True)
class Results:
    """A whole study.  Noise is told arm by arm, never pooled: it differs many-fold between blends."""

    name: str
    baseline: str
    seeds: tuple[int, ...]
    parameters: int
    fresh_weights: bool
    held_out_documents: int
    held_out_bytes: int
    arms: tuple[ArmResult, ...]
    runs: tuple[RunResult, ...]

    @property
    def baseline_arm(self) -> ArmResult:
        return next(arm for arm in self.arms if arm.arm == self.baseline)

    @property
    def smoke_test(self) -> bool:
        return self.parameters < SMOKE_TEST_PARAMETERS

    @property
    def size(self) -> str:
        """Number of weights, in millions where there are that many."""
        return f"{self.parameters / 1e6:.1f}M" if self.parameters >= 1e6 else f"{self.parameters:,}"

    @property
    def label(self) -> str:
        """The model's size, and whether that is too small to decide anything."""
        size = f"{self.size} parameters"
        return f"smoke test: {size}, under {SMOKE_TEST_PARAMETERS / 1e6:.0f}M" if self.smoke_test else size

    def to_json(self) -> dict[str, Any]:
        return {"format_version": RESULTS_FORMAT_VERSION, "label": self.label, **asdict(self)}


def collect(study: Study) -> Results:
    """Read every run of a finished study; UserError names a run that is not whole or did not draw what it should."""
    runs = tuple(_read_run(study, arm, seed) for arm, seed in study.runs())
    first = RunPaths(run_folder(study, *study.runs()[0]))
    held_out = read_manifest(first.held_out_prefix)
    card = _last_card(first)
    return Results(
        name=study.name,
        baseline=study.baseline_arm,
        seeds=study.seeds,
        parameters=Architecture(**card["architecture"]).parameters(),
        fresh_weights=not card["load_hf"],
        held_out_documents=held_out.documents,
        held_out_bytes=held_out.text_bytes,
        arms=compare(study, runs),
        runs=runs,
    )


def compare(study: Study, runs: Sequence[RunResult]) -> tuple[ArmResult, ...]:
    """The arms in the study's order, each against the baseline seed by seed.  Pure."""
    found = {(run.arm, run.seed): run.bits_per_byte for run in runs}
    base = [found[study.baseline_arm, seed] for seed in study.seeds]
    arms = []
    for arm, weights in study.arms.items():
        values = [found[arm, seed] for seed in study.seeds]
        differences = tuple(value - reference for value, reference in zip(values, base, strict=True))
        arms.append(
            ArmResult(
                arm=arm,
                weights=dict(weights),
                bits_per_byte=tuple(values),
                mean=fmean(values),
                spread=max(values) - min(values),
                sd=stdev(values),
                differences=differences,
                difference=fmean(differences),
                difference_sd=stdev(differences),
            )
        )
    return tuple(arms)


def write(results: Results, folder: Path) -> tuple[Path, Path]:
    """Write results.json, all of it, and results.csv, a row a run; returns both paths."""
    write_json(folder / "results.json", results.to_json())
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows(table_of_runs(results))
    with atomic_file(folder / "results.csv") as file:
        file.write(stream.getvalue().encode("utf-8"))
    return folder / "results.json", folder / "results.csv"


def table_of_runs(results: Results) -> list[list[Any]]:
    """A heading, then a row a run; for each source its planned and realised share and its samples."""
    sources = list(dict.fromkeys(draws.source for run in results.runs for draws in run.draws))
    names = ["arm", "seed", "bits_per_byte", "minus_baseline", "bits_per_byte_at_start", "loss", "held_out_tokens"]
    names += ["iterations", "samples", "tokens", "seconds"]
    table: list[list[Any]] = [
        names + [f"{source}_{what}" for source in sources for what in ("planned", "realised", "samples")]
    ]
    base = {run.seed: run.bits_per_byte for run in results.runs if run.arm == results.baseline}
    for run in results.runs:
        row = [run.arm, run.seed, run.bits_per_byte, run.bits_per_byte - base[run.seed], run.bits_per_byte_at_start]
        row += [run.loss, run.held_out_tokens, run.iterations, run.samples, run.tokens, run.seconds]
        drawn = {draws.source: (draws.planned_share, draws.realised_share, draws.samples) for draws in run.draws}
        table.append(row + [value for source in sources for value in drawn.get(source, (0.0, 0.0, 0))])
    return table


def _read_run(study: Study, arm: str, seed: int) -> RunResult:
    paths = RunPaths(run_folder(study, arm, seed))
    rows = read_metrics(paths.metrics)
    card = _last_card(paths)
    scored = {row["iteration"]: row for row in rows if row["kind"] == "validation"}
    steps = [row for row in rows if row["kind"] == "train"]
    last = scored.get(card["iteration"])
    if last is None or not steps:
        raise UserError(paths.metrics, "has no validation after the last step", "delete that run's folder, start again")
    planned = load_recipe(paths.root / "recipe.yaml").train
    if planned is not None and card["iteration"] != planned.train_iters:
        problem = f"has {card['iteration']} steps where its recipe says {planned.train_iters}"
        raise UserError(paths.root, problem, "delete that folder and start the study again")
    whole = read_manifest(paths.held_out_prefix).tokens - 1
    if last["tokens"] != whole:
        problem = f"the last validation covered {last['tokens']} of {whole} held-out tokens"
        raise UserError(paths.metrics, problem, "the data changed since: delete that run's folder, start again")
    samples = card["consumed_samples"]
    return RunResult(
        arm=arm,
        seed=seed,
        bits_per_byte=last["bits_per_byte"],
        bits_per_byte_at_start=scored[0]["bits_per_byte"],
        loss=last["loss"],
        held_out_tokens=last["tokens"],
        iterations=card["iteration"],
        samples=samples,
        tokens=steps[-1]["consumed_tokens"],
        seconds=sum(row["step_seconds"] for row in steps),
        draws=verified_draws(paths.root, paths.blend, study.arms[arm], rows, samples),
    )


def _last_card(paths: RunPaths) -> dict[str, Any]:
    """The run card of the newest checkpoint, read without megatron-core."""
    cards = sorted(paths.checkpoints.glob("iter_*[0-9]/run_card.json"))
    if not cards:
        raise UserError(paths.root, "has no checkpoint", "start the study again")
    card: dict[str, Any] = json.loads(cards[-1].read_text(encoding="utf-8"))
    return card
