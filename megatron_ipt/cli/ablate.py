"""ipt ablate: one recipe under several blends, each with the same seeds; what is finished is not done again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_ipt.ablate import runs
from megatron_ipt.ablate.study import Study, check_recipe
from megatron_ipt.cli import tables
from megatron_ipt.cli.pipeline import STEPS, Context, check
from megatron_ipt.cli.run import run_step
from megatron_ipt.recipe import load_recipe, load_settings

if TYPE_CHECKING:
    from megatron_ipt.ablate.results import Results

DATA_STEPS = ("fetch", "synthesize", "check", "render", "index")


def ablate(
    study: Annotated[Path, typer.Argument(help="study, YAML: recipe, arms: {name: {source: weight}}, seeds")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value of the study ...")] = None,
) -> None:
    """Train every arm with every seed, one run after another; table, results.json, results.csv, ablation.html.

    Start it again to go on: finished runs are kept, a run of other settings is refused.
    """
    settings = load_settings(Study, study, overrides or [])
    path = study.parent / settings.recipe
    shared = Context(load_recipe(path, settings.overrides), path, settings.overrides)
    check(shared.recipe)
    check_recipe(settings, shared.recipe)
    for step in STEPS:
        if step.name in DATA_STEPS and step.runs(shared.recipe):
            run_step(step, shared, dry_run=False)
    contexts = _prepare(settings, shared)
    steps = {step.name: step for step in STEPS}
    for name in ("blend", "train"):  # all blends first: what is wrong with one is told before hours of training
        for number, context in enumerate(contexts, 1):
            tables.console().rule(f"{context.recipe.name} ({number} of {len(contexts)})", style="dim")
            run_step(steps[name], context, dry_run=False)
    _tell(settings)


def _prepare(study: Study, shared: Context) -> list[Context]:
    """Write every run's recipe and link its data; all that would be refused is, before anything trains."""
    sequences = runs.check_data(study, shared.recipe, shared.paths)
    recipes = [runs.run_recipe(study, shared.recipe, arm, seed, sequences) for arm, seed in study.runs()]
    for recipe in recipes:
        runs.check_unchanged(recipe)
    contexts = []
    for recipe in recipes:
        runs.link_data(recipe, shared.paths)
        contexts.append(Context(recipe, runs.write_recipe(recipe), ()))
    return contexts


def _tell(study: Study) -> None:
    """Collect, write and print; UserError when a run did not draw what its arm says."""
    from megatron_ipt.ablate.results import collect, write
    from megatron_ipt.report import ablation
    from megatron_ipt.report.ablation import caveats

    results = collect(study)
    _show_draws(results)
    _show_arms(results)
    console = tables.console()
    for sentence in caveats(results):
        console.print(sentence)
    for path in (*write(results, study.output_dir), ablation(results, study.output_dir)):
        console.print(f"wrote {path}", soft_wrap=True)


def _show_arms(results: Results) -> None:
    from megatron_ipt.report.ablation import weights_text

    columns = ["arm", "weights", "mean", *(f"seed {seed}" for seed in results.seeds)]
    columns += [f"minus {results.baseline}", "seed by seed", "spread between seeds", "seeds agree"]
    rows = []
    for arm in results.arms:
        against = [f"{arm.difference:+.4f}", ", ".join(f"{value:+.4f}" for value in arm.differences)]
        scores = [f"{value:.4f}" for value in (arm.mean, *arm.bits_per_byte)]
        compared = ["-", "-"] if arm is results.baseline_arm else against
        row = [arm.arm, weights_text(arm), *scores, *compared, f"{arm.spread:.4f}"]
        rows.append([*row, arm.direction(results.baseline)])
    tables.show(f"{results.name}: held-out bits per byte ({results.label})", columns, rows)


def _show_draws(results: Results) -> None:
    columns = ("arm", "seed", "source", "planned share", "realised share", "samples", "difference [samples]")
    rows = [
        (run.arm, run.seed, row.source, row.planned_share, row.realised_share, row.samples, f"{row.difference:+.2f}")
        for run in results.runs
        for row in run.draws
    ]
    tables.show("samples drawn: the stream read again and training's own log agree", columns, rows)
