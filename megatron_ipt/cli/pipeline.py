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
from data_prep.settings import BlendSettings, SourceSettings
from megatron_ipt.cli import steps
from megatron_ipt.cli.train import launch
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
    """One arrow.  `sections` are the recipe's sections its result depends on; the first decides whether it runs."""

    name: str
    sections: tuple[str, ...]
    inputs: Callable[[Context], list[Path]]
    outputs: Callable[[Context], list[Path]]
    action: Callable[[Context], None]


def settings_of(step: Step, recipe: Recipe) -> dict[str, Any]:
    """The settings a step depends on, as JSON."""
    return {name: value.model_dump(mode="json") for name in step.sections if (value := getattr(recipe, name))}


def synthesizer(run: Context) -> Path:
    return section(run.recipe, "synthesize").model or run.paths.model


def tokenizer(run: Context) -> Path:
    return section(run.recipe, "index").tokenizer or run.paths.model


def datasets(run: Context) -> dict[Path, Path]:
    """Prefix -> training text, for all that `index` writes."""
    texts = {run.paths.indexed / name: run.paths.text / f"{name}.jsonl" for name in ("augmented", "raw")}
    return {**texts, run.paths.held_out_prefix: run.paths.held_out}


def filled_blend(run: Context) -> BlendSettings:
    """The recipe's blend with the prefixes that `index` wrote, and the samples that `train` will draw."""
    settings: BlendSettings = section(run.recipe, "blend")
    train = run.recipe.train
    sources = {}
    for name, source in settings.sources.items():
        prefix = source.prefix or run.paths.indexed / name
        sources[name] = SourceSettings(prefix=prefix.absolute(), weight=source.weight)
    samples = settings.train_samples or (train.train_iters * train.global_batch_size if train else None)
    return settings.model_copy(update={"sources": sources, "train_samples": samples or None})


def _fetch(run: Context) -> None:
    settings = section(run.recipe, "fetch")
    steps.fetch(settings, run.paths.documents.parent)
    if settings.model:
        from data_prep.fetch import fetch_model

        link = run.paths.model
        link.unlink(missing_ok=True)
        link.symlink_to(fetch_model(settings.model), target_is_directory=True)


def _leftovers(run: Context) -> list[Path]:
    """Texts that got no pairs, and texts that lost them in a check: both go on as raw text."""
    return [steps.leftover_of(path) for path in (run.paths.chains, run.paths.checked)]


def _index(run: Context) -> None:
    for prefix, text in datasets(run).items():
        steps.index(section(run.recipe, "index"), [text], tokenizer(run), prefix)


def _dataset_files(run: Context) -> list[Path]:
    return [
        prefix.with_name(prefix.name + end) for prefix in datasets(run) for end in (".bin", ".idx", ".manifest.json")
    ]


def _evaluate(run: Context, model: Path, out: Path) -> None:
    if not run.paths.held_out.exists():
        raise UserError(run.paths.held_out, "no held-out documents", "run the step `fetch`")
    sets = {"held_out": run.paths.held_out, SELF_MADE: run.paths.text / "augmented.jsonl"}
    present = {name: path for name, path in sets.items() if path.exists()}
    steps.evaluate(section(run.recipe, "evaluate"), model, present, out, [SELF_MADE])


def _start(run: Context) -> Path:
    """The Hugging Face directory that training begins from."""
    return section(run.recipe, "model").load_hf or run.paths.model


def _after(run: Context) -> None:
    out = run.paths.evaluation / "after.json"
    _evaluate(run, run.paths.hf, out)
    steps.compare(run.paths.evaluation / "before.json", out)


def _report(run: Context) -> None:
    from megatron_ipt.report import report

    report(section(run.recipe, "report"), run.paths, run.recipe.name)


def _train_inputs(run: Context) -> list[Path]:
    return [run.paths.blend, run.paths.held_out_prefix.with_suffix(".manifest.json"), _start(run) / "config.json"]


STEPS: tuple[Step, ...] = (
    Step(
        "fetch",
        ("fetch",),
        lambda run: [],
        lambda run: [run.paths.documents, run.paths.held_out, run.paths.model / "config.json"],
        _fetch,
    ),
    Step(
        "synthesize",
        ("synthesize",),
        lambda run: [run.paths.documents, synthesizer(run) / "model.safetensors"],
        lambda run: [run.paths.chains, steps.leftover_of(run.paths.chains)],
        lambda run: steps.synthesize(
            section(run.recipe, "synthesize"), run.paths.documents, synthesizer(run), run.paths.chains
        ),
    ),
    Step(
        "check",
        ("check",),
        lambda run: [run.paths.chains],
        lambda run: [run.paths.checked, steps.leftover_of(run.paths.checked)],
        lambda run: steps.check(section(run.recipe, "check"), run.paths.chains, run.paths.checked),
    ),
    Step(
        "render",
        ("render",),
        lambda run: [run.paths.checked, run.paths.documents, *_leftovers(run)],
        lambda run: [run.paths.text / "augmented.jsonl", run.paths.text / "raw.jsonl"],
        lambda run: steps.render(
            section(run.recipe, "render"), run.paths.checked, _leftovers(run), run.paths.documents, run.paths.text
        ),
    ),
    Step(
        "index",
        ("index",),
        lambda run: [*datasets(run).values(), tokenizer(run) / "tokenizer.json"],
        _dataset_files,
        _index,
    ),
    Step(
        "blend",
        ("blend", "train"),
        lambda run: [prefix.with_name(prefix.name + ".manifest.json") for prefix in datasets(run)],
        lambda run: [run.paths.blend],
        lambda run: steps.plan(
            filled_blend(run), run.paths.blend.parent, Path(), tokenizer(run) if run.recipe.index else None
        ),
    ),
    Step(
        "baseline",
        ("evaluate",),
        lambda run: [run.paths.held_out, run.paths.text / "augmented.jsonl", _start(run) / "model.safetensors"],
        lambda run: [run.paths.evaluation / "before.json"],
        lambda run: _evaluate(run, _start(run), run.paths.evaluation / "before.json"),
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
        lambda run: steps.export(run.paths.checkpoints, run.paths.hf, _start(run)),
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
            run.paths.checked,
            run.paths.blend,
            run.paths.metrics,
            run.paths.evaluation,
        ],
        lambda run: [run.paths.report],
        _report,
    ),
)
