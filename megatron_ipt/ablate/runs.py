"""(arm, seed) -> an ordinary run: its folder, its recipe, and the shared data linked into it.

A run's folder is what `ipt run` would have made of its recipe.yaml, so any of them may be run again or gone on with by
hand.  Nothing here trains.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.manifest import read_manifest, write_json
from data_prep.readers import atomic_file
from data_prep.settings import AMOUNT_UNITS, BlendSettings, SourceSettings
from megatron_ipt.ablate.study import Study
from megatron_ipt.paths import RunPaths
from megatron_ipt.recipe import Recipe, load_recipe, to_yaml

DATASET_ENDS = (".bin", ".idx", ".manifest.json")
SIDE_ENDS = (".spans", ".lineage.parquet")  # where they are
SECTIONS = ("blend", "model", "train")
_MEND = "give the study another output_dir, or delete that folder to have the run made anew"


def run_folder(study: Study, arm: str, seed: int) -> Path:
    """Absolute, so that a run's recipe works from any folder."""
    return study.output_dir.absolute() / "runs" / arm / f"seed-{seed}"


def run_recipe(study: Study, base: Recipe, arm: str, seed: int, held_out_sequences: int) -> Recipe:
    """The recipe of one run: the arm's weights, the seed, and whatever makes the result exact.

    The final validation covers all `held_out_sequences`, and each step is logged, so that the metrics hold every draw.
    """
    assert base.blend is not None and base.model is not None and base.train is not None  # check_recipe
    weights = {name: weight for name, weight in study.arms[arm].items() if weight > 0}
    sources = {name: _source_of_arm(base.blend.sources[name], weights, name) for name in weights}
    batches = -(-held_out_sequences // base.train.global_batch_size)
    train = {"seed": seed, "eval_iters": batches, "log_interval": 1, "load": _absolute(base.train.load)}
    return Recipe(
        name=f"{study.name}: {arm}, seed {seed}",
        output_dir=run_folder(study, arm, seed),
        blend=base.blend.model_copy(update={"sources": sources, "seed": seed, **_of_arm(base.blend)}),
        model=base.model.model_copy(update={"load_hf": _absolute(base.model.load_hf)}),
        train=base.train.model_copy(update=train),
    )


def check_data(study: Study, base: Recipe, shared: RunPaths) -> int:
    """Sequences of the held-out set; UserError where it is missing, or where data changed under a begun run.

    What the runs were made from stands in OUTPUT_DIR/data.json, by source.
    """
    assert base.blend is not None
    if not shared.held_out_prefix.with_name(shared.held_out_prefix.name + ".manifest.json").exists():
        mend = "let the study's recipe make one: fetch.held_out_documents"
        raise UserError(shared.held_out_prefix, "no held-out dataset to score the arms on", mend)
    prefixes = {name: source.prefix or shared.indexed / name for name, source in base.blend.sources.items()}
    used = {source for weights in study.arms.values() for source, weight in weights.items() if weight > 0}
    held_out = read_manifest(shared.held_out_prefix)
    found = {name: read_manifest(prefix).data_hash for name, prefix in prefixes.items() if name in used}
    found["held_out"] = held_out.data_hash
    record = study.output_dir / "data.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    changed = [name for name in found if known.get(name, found[name]) != found[name]]
    begun = any(has_trained(run_folder(study, arm, seed)) for arm, seed in study.runs())
    if changed and begun:
        problem = f"the data changed since runs were made from it ({', '.join(changed)})"
        raise UserError(record, problem, "give the study another output_dir")
    record.parent.mkdir(parents=True, exist_ok=True)
    write_json(record, {**known, **found})
    return -(-(held_out.tokens - 1) // base.blend.seq_length)


def check_unchanged(recipe: Recipe) -> None:
    """UserError when a run of other settings has begun to train in the folder of this one."""
    path = recipe_path(recipe)
    if path.exists() and has_trained(recipe.output_dir):
        changed = changes(load_recipe(path), recipe)
        if changed:
            raise UserError(path.parent, f"holds a run of other settings ({', '.join(changed)})", _MEND)


def recipe_path(recipe: Recipe) -> Path:
    return recipe.output_dir / "recipe.yaml"


def write_recipe(recipe: Recipe) -> Path:
    """Write RUN/recipe.yaml and return its path."""
    path = recipe_path(recipe)
    note = "# Written by `ipt ablate`.  `ipt run` makes this run again, `ipt train` goes on with it.\n"
    with atomic_file(path) as file:
        file.write((note + to_yaml(recipe)).encode("utf-8"))
    return path


def has_trained(folder: Path) -> bool:
    """Whether a checkpoint stands there, which a run would go on from."""
    return (RunPaths(folder).checkpoints / "latest_checkpointed_iteration.txt").exists()


def changes(before: Recipe, now: Recipe) -> list[str]:
    """Settings that differ in what a run computes from, as `key before -> now`.  Pure."""
    old, new = (_flat(recipe.model_dump(mode="json", include=set(SECTIONS))) for recipe in (before, now))
    return [f"{key} {old.get(key)} -> {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)]


def link_data(recipe: Recipe, shared: RunPaths) -> None:
    """Link the shared datasets, file by file, where the run's steps look for them; its pack tables are its own."""
    assert recipe.blend is not None
    names = [name for name, source in recipe.blend.sources.items() if source.prefix is None]
    paths = RunPaths(recipe.output_dir)
    for name in [*names, shared.held_out_prefix.name]:
        side = [end for end in SIDE_ENDS if (shared.indexed / (name + end)).exists()]
        for end in (*DATASET_ENDS, *side):
            _link(paths.indexed / (name + end), shared.indexed.absolute() / (name + end))


def _link(link: Path, target: Path) -> None:
    """A relative link: study and data may be moved together."""
    if not target.exists():
        raise UserError(target, "no such dataset file", "let the study's recipe make it: sections fetch to index")
    pointer = Path(os.path.relpath(target, link.parent))
    if link.is_symlink() and link.readlink() == pointer:
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(pointer)


def _of_arm(blend: BlendSettings) -> dict[str, Any]:
    """An arm's weights are the whole mix.  A proxy keeps the length of the run it stands for; else training has it."""
    length = blend.train_tokens if blend.proxy_tokens else None
    return {"mode": None, "train_tokens": length, "train_samples": None}


def _source_of_arm(source: SourceSettings, weights: Mapping[str, float], name: str) -> SourceSettings:
    """A source of the recipe with the arm's weight in place of whatever the recipe asks for."""
    changes: dict[str, Any] = {unit: None for unit in AMOUNT_UNITS}
    changes |= {"weight": weights[name], "prefix": _absolute(source.prefix)}
    changes["copy_of"] = source.copy_of if source.copy_of in weights else None
    return source.model_copy(update=changes)


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted name, those that are not set left out."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found.update(_flat(value, f"{prefix}{name}."))
        elif value is not None:
            found[prefix + name] = value
    return found
