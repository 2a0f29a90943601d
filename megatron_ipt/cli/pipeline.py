"""The arrows of a run as a table: what each step reads, writes and does.

`STEPS` is in the order of the flow.  A step runs when its section stands in the recipe.  Pure but for the actions,
which call `steps`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.settings import BlendSettings
from megatron_ipt.cli import steps
from megatron_ipt.cli.train import check_here, launch
from megatron_ipt.paths import RunPaths
from megatron_ipt.recipe import Recipe, section

SELF_MADE = "self_made_pairs"


@dataclass(frozen=True, slots=True)
class Context:
    """A run: its recipe, where the recipe lies, and the overrides it was read with."""

    recipe: Recipe
    path: Path
    overrides: Sequence[str]

    @property
    def paths(self) -> RunPaths:
        return RunPaths(self.recipe.output_dir)


@dataclass(frozen=True, slots=True)
class Step:
    """One arrow.  `sections` are the recipe's sections its result depends on.

    It runs when the first of them stands in the recipe and `wanted` says so.
    """

    name: str
    sections: tuple[str, ...]
    inputs: Callable[[Context], list[Path]]
    outputs: Callable[[Context], list[Path]]
    action: Callable[[Context], None]
    wanted: Callable[[Recipe], bool] = lambda recipe: True

    def runs(self, recipe: Recipe) -> bool:
        return getattr(recipe, self.sections[0]) is not None and self.wanted(recipe)


def settings_of(step: Step, recipe: Recipe) -> dict[str, Any]:
    """The settings a step depends on, as JSON."""
    return {name: value.model_dump(mode="json") for name in step.sections if (value := getattr(recipe, name))}


def synthesizer(run: Context) -> Path | None:
    """The model that is named, else the fetched one; None where the preset names it, and for rules, which have none."""
    settings = section(run.recipe, "synthesize")
    if settings.model is None and (settings.preset or settings.engine == "rules"):
        return None
    return settings.model or run.paths.model


def tokenizer(run: Context) -> Path:
    return section(run.recipe, "index").tokenizer or run.paths.model


def datasets(run: Context) -> dict[Path, Path]:
    """Prefix -> training text, for all that `index` writes: what was rendered, else the documents as they are."""
    if run.recipe.render is not None:
        texts = {run.paths.indexed / name: run.paths.text / f"{name}.jsonl" for name in ("augmented", "raw")}
    else:
        texts = {run.paths.indexed / "raw": run.paths.documents}
    holds_out = run.recipe.fetch.held_out_documents > 0 if run.recipe.fetch else run.paths.held_out.exists()
    return {**texts, run.paths.held_out_prefix: run.paths.held_out} if holds_out else texts


def model_files(folder: Path) -> list[Path]:
    """The files that decide what a model computes and how it reads text."""
    return sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]) or [folder / "config.json"]


def check(recipe: Recipe) -> None:
    """UserError for what would stop a run behind hours of data steps: a layout that cannot be, and settings that belong
    to `ipt train` alone (other places, as a run's steps share its output_dir, and a stop file, as the steps behind
    training would go on with half of it).
    """
    for name in ("save", "blend", "held_out"):
        if recipe.train is not None and getattr(recipe.train, name) is not None:
            raise UserError(f"train.{name}", "is for `ipt train`; a run's files stand in output_dir", "leave it out")
    if recipe.train is not None and recipe.train.stop_file is not None:
        problem = "is for `ipt train`; a run that it ends early would be taken for a finished one here"
        raise UserError("train.stop_file", problem, "leave it out")
    source = recipe.model.load_hf if recipe.model is not None else None
    to_come = source is not None and not source.exists()  # `fetch` brings it
    if recipe.train is not None and recipe.model is not None and not to_come:
        check_here(recipe)


def filled_blend(run: Context) -> BlendSettings:
    """The recipe's blend with the prefixes that `index` wrote, and the samples that `train` will draw."""
    settings: BlendSettings = section(run.recipe, "blend")
    train = run.recipe.train
    sources = {}
    for name, source in settings.sources.items():
        prefix = source.prefix or run.paths.indexed / name
        sources[name] = source.model_copy(update={"prefix": prefix.absolute()})
    samples = settings.train_samples
    if samples is None and settings.train_tokens is None and train:
        samples = train.batch_sizes.consumed_after(train.train_iters)
    return settings.model_copy(update={"sources": sources, "train_samples": samples or None})


def _fetched(run: Context) -> list[Path]:
    model = [run.paths.model / "config.json"] if section(run.recipe, "fetch").model else []
    return [run.paths.documents, run.paths.held_out, *model]


def _fetch(run: Context) -> None:
    settings = section(run.recipe, "fetch")
    steps.fetch(settings, run.paths.documents.parent)
    if settings.model:
        from data_prep.fetch import fetch_model

        link = run.paths.model
        link.unlink(missing_ok=True)
        link.symlink_to(fetch_model(settings.model), target_is_directory=True)


def _tokenizer_files(run: Context) -> list[Path]:
    """The file of a tokenizer, or all of its directory that a tokenizer may be read from."""
    place = tokenizer(run)
    if not place.is_dir():
        return [place]
    return sorted(path for kind in ("*.json", "*.model", "*.tiktoken") for path in place.glob(kind))


def _leftovers(run: Context) -> list[Path]:
    """Texts that got no pairs, and texts that lost them in a check: both go on as raw text."""
    return [steps.leftover_of(path) for path in (run.paths.chains, run.paths.checked)]


def _check_files(run: Context) -> list[Path]:
    """Evaluation tasks that the checks hold the pairs against."""
    return list(section(run.recipe, "check").decontaminate)


def _templates(run: Context) -> list[Path]:
    """The user's own templates, where the recipe names some."""
    settings = section(run.recipe, "render")
    return sorted((settings.templates / settings.language).glob("*.yaml")) if settings.templates else []


def _synthesizer_files(run: Context) -> list[Path]:
    """None of the preset's: its name, which is of the settings, stands for them."""
    model = synthesizer(run)
    return model_files(model) if model is not None else []


def _demonstrations(run: Context) -> list[Path]:
    path = section(run.recipe, "synthesize").demonstrations
    return [path] if path is not None and path.exists() else []


def _index(run: Context) -> None:
    for prefix, text in datasets(run).items():
        steps.index(section(run.recipe, "index"), [text], tokenizer(run), prefix)


def _dataset_files(run: Context) -> list[Path]:
    """Files of the datasets, all that are there: spans are for texts with classes only."""
    always = [prefix.with_name(prefix.name + end) for prefix in datasets(run) for end in (".bin", ".idx")]
    side = [prefix.with_name(prefix.name + end) for prefix in datasets(run) for end in (".spans", ".lineage.parquet")]
    manifests = [prefix.with_name(prefix.name + ".manifest.json") for prefix in datasets(run)]
    return [*always, *(path for path in side if path.exists()), *manifests]


def _manifests(run: Context) -> list[Path]:
    settings = filled_blend(run)
    prefixes = [source.prefix for source in settings.sources.values() if source.prefix is not None]
    prefixes += settings.held_out.values()
    return [prefix.with_name(prefix.name + ".manifest.json") for prefix in prefixes]


def _evaluate(run: Context, model: Path, out: Path) -> None:
    if not run.paths.held_out.exists():
        raise UserError(run.paths.held_out, "no held-out documents", "run the step `fetch`")
    sets = {"held_out": run.paths.held_out, SELF_MADE: run.paths.text / "augmented.jsonl"}
    present = {name: path for name, path in sets.items() if path.exists()}
    steps.evaluate(section(run.recipe, "evaluate"), model, present, out, [SELF_MADE])


def _start(run: Context) -> Path:
    """The Hugging Face directory that training begins from."""
    start = section(run.recipe, "model").load_hf
    assert start is not None  # the steps that ask are wanted only then
    return Path(start)


def _starts_from_weights(recipe: Recipe) -> bool:
    return recipe.model is not None and recipe.model.load_hf is not None


def _export(run: Context) -> None:
    """A model from scratch gets the tokenizer that its data were indexed with."""
    start = section(run.recipe, "model").load_hf
    own = tokenizer(run) if start is None and run.recipe.index is not None else None
    steps.export(run.paths.checkpoints, run.paths.hf, start, tokenizer=own)


def _after(run: Context) -> None:
    out = run.paths.evaluation / "after.json"
    _evaluate(run, run.paths.hf, out)
    if _starts_from_weights(run.recipe):
        steps.compare(run.paths.evaluation / "before.json", out)


def _report(run: Context) -> None:
    from megatron_ipt.report import report

    report(section(run.recipe, "report"), run.paths, run.recipe.name)


def _train_inputs(run: Context) -> list[Path]:
    weights = model_files(_start(run)) if _starts_from_weights(run.recipe) else []
    return [run.paths.blend, run.paths.held_out_prefix.with_name("held_out.manifest.json"), *weights]


STEPS: tuple[Step, ...] = (
    Step(
        "fetch",
        ("fetch",),
        lambda run: [],
        _fetched,
        _fetch,
    ),
    Step(
        "synthesize",
        ("synthesize",),
        lambda run: [run.paths.documents, *_synthesizer_files(run), *_demonstrations(run)],
        lambda run: [run.paths.chains, steps.leftover_of(run.paths.chains)],
        lambda run: steps.synthesize(
            section(run.recipe, "synthesize"), [run.paths.documents], synthesizer(run), run.paths.chains, replace=True
        ),
    ),
    Step(
        "check",
        ("check",),
        lambda run: [run.paths.chains, *_check_files(run)],
        lambda run: [run.paths.checked, steps.leftover_of(run.paths.checked), steps.withheld_of(run.paths.checked)],
        lambda run: steps.check(section(run.recipe, "check"), run.paths.chains, run.paths.checked),
    ),
    Step(
        "render",
        ("render",),
        lambda run: [
            *(run.paths.checked, steps.withheld_of(run.paths.checked), run.paths.documents),
            *_leftovers(run),
            *_templates(run),
        ],
        lambda run: [run.paths.text / "augmented.jsonl", run.paths.text / "raw.jsonl"],
        lambda run: steps.render(
            section(run.recipe, "render"), run.paths.checked, _leftovers(run), run.paths.documents, run.paths.text
        ),
    ),
    Step(
        "index",
        ("index",),
        lambda run: [*datasets(run).values(), *_tokenizer_files(run)],
        _dataset_files,
        _index,
    ),
    Step(
        "blend",
        ("blend", "train"),
        _manifests,
        lambda run: [run.paths.blend, *run.paths.indexed.glob("*.pack-*")],
        lambda run: steps.plan(
            filled_blend(run), run.paths.blend.parent, Path(), tokenizer(run) if run.recipe.index else None
        ),
    ),
    Step(
        "baseline",
        ("evaluate",),
        lambda run: [run.paths.held_out, run.paths.text / "augmented.jsonl", *model_files(_start(run))],
        lambda run: [run.paths.evaluation / "before.json"],
        lambda run: _evaluate(run, _start(run), run.paths.evaluation / "before.json"),
        _starts_from_weights,
    ),
    Step(
        "train",
        ("train", "model"),
        _train_inputs,
        lambda run: [run.paths.metrics, run.paths.checkpoints],
        lambda run: launch(run.recipe, run.path, run.overrides),
    ),
    Step(
        "export",
        ("train", "model"),
        lambda run: [run.paths.checkpoints],
        lambda run: [run.paths.hf],
        _export,
    ),
    Step(
        "evaluate",
        ("evaluate",),
        lambda run: [run.paths.hf, run.paths.held_out, run.paths.evaluation / "before.json"],
        lambda run: [run.paths.evaluation / "after.json"],
        _after,
    ),
    Step(
        "report",
        ("report",),
        lambda run: [
            run.paths.documents.with_name("summary.json"),
            *sorted(run.paths.chains.parent.glob("*.summary.json")),
            run.paths.checked,
            run.paths.blend.with_name("plan.json"),
            run.paths.metrics,
            run.paths.evaluation,
        ],
        lambda run: [run.paths.report],
        _report,
    ),
)
