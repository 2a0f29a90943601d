"""STUDY.yaml: arms of blend weights over one recipe, each trained with the same seeds."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from pydantic import Field, model_validator

from data_prep.errors import UserError, nearest
from data_prep.settings import Settings
from megatron_ipt.recipe import Recipe, section

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


class Study(Settings):
    """ipt ablate: which blends are compared, by which seeds, on which recipe."""

    name: str = Field(description="name of the study")
    output_dir: Path = Field(description="folder of the runs and the results")
    recipe: Path = Field(description="recipe, relative to the study's file; its steps up to `index` run once for all")
    arms: dict[str, dict[str, float]] = Field(
        description="arm -> weights by source of the recipe's blend, on any scale; a source left out has weight 0"
    )
    baseline: str | None = Field(None, description="arm that the others are held against; default: the first")
    seeds: tuple[int, ...] = Field(
        (1, 2), description="every arm is trained once with each; a seed sets data order and fresh weights"
    )
    overrides: tuple[str, ...] = Field((), description="section.key=value of the recipe, common to all arms")

    @model_validator(mode="after")
    def _compares(self) -> Study:
        if len(self.arms) < 2:
            raise ValueError(f"{len(self.arms)} arm compares nothing; name at least two under `arms`")
        for name, weights in self.arms.items():
            _check_arm(name, weights)
        shares = {name: tuple(sorted(shares_of(weights).items())) for name, weights in self.arms.items()}
        twice = next((found for found, count in Counter(shares.values()).items() if count > 1), None)
        if twice:
            same = [name for name, found in shares.items() if found == twice]
            raise ValueError(f"arms {' and '.join(same)} are one blend; give them other weights or leave one out")
        if self.baseline is not None and self.baseline not in self.arms:
            raise ValueError(f"baseline: no arm '{self.baseline}'; {nearest(self.baseline, self.arms)}")
        repeated = [str(seed) for seed, count in Counter(self.seeds).items() if count > 1]
        if repeated:
            raise ValueError(f"seeds: {', '.join(repeated)} stands there twice; give each seed once")
        if len(self.seeds) < 2:
            raise ValueError(f"seeds: {len(self.seeds)} seed shows no noise; give at least two, [1, 2] by default")
        return self

    @property
    def baseline_arm(self) -> str:
        return self.baseline or next(iter(self.arms))

    def runs(self) -> list[tuple[str, int]]:
        """(arm, seed) of every run, all arms of a seed before the next seed: a study cut short still compares."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]


def shares_of(weights: Mapping[str, float]) -> dict[str, Fraction]:
    """The exact share of each source with a weight above 0."""
    exact = {name: Fraction(weight) for name, weight in weights.items() if weight > 0}
    return {name: weight / sum(exact.values()) for name, weight in exact.items()}


def check_recipe(study: Study, recipe: Recipe) -> None:
    """UserError where the recipe lacks what a run needs, or where an arm names a source that its blend has not."""
    for name in ("blend", "model", "train"):
        section(recipe, name)
    blend = section(recipe, "blend")
    if blend.phases:
        raise UserError(study.recipe, "its blend has phases, and an arm is one mix", "leave blend.phases out")
    sources = blend.sources
    for arm, weights in study.arms.items():
        for source in weights:
            if source not in sources:
                raise UserError(f"arms.{arm}.{source}", f"no source of {study.recipe}", nearest(source, sources))


def _check_arm(name: str, weights: Mapping[str, float]) -> None:
    if not _FOLDER_NAME.fullmatch(name):
        raise ValueError(f"arms: '{name}' is to be a folder's name; use letters, digits and . _ + -")
    for source, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"arms.{name}.{source}: {weight:g} is no weight; give a number from 0 on")
    if not any(weights.values()):
        raise ValueError(f"arms.{name}: no source has a weight above 0; give one to at least one source")
