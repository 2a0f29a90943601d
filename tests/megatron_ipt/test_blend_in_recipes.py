"""What a recipe says of its blend reaches the planner: whole by `ipt run`, with an arm's weights by `ipt ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from megatron_ipt.ablate.runs import run_recipe
from megatron_ipt.ablate.study import Study, check_recipe
from megatron_ipt.cli.pipeline import Context, filled_blend
from megatron_ipt.recipe import Recipe, load_recipe, to_yaml

SOURCES = {
    "raw": {"prefix": "/data/raw", "loss": "answers", "policy": "chains"},
    "pairs": {"kind": "augmented", "copy_of": "raw", "max_epochs": 9},
}


def a_recipe(**blend: Any) -> Recipe:
    train = {"global_batch_size": 4, "seq_length": 16, "train_iters": 10, "lr": 1e-3}
    settings = {"sources": SOURCES, "seq_length": 16, **blend}
    return Recipe.model_validate({"name": "r", "output_dir": "o", "blend": settings, "model": {}, "train": train})


def test_a_run_keeps_what_its_recipe_says_of_a_source(tmp_path: Path) -> None:
    blend = filled_blend(Context(a_recipe(mode="proportional"), tmp_path, ()))
    raw, pairs = blend.sources["raw"], blend.sources["pairs"]
    assert (raw.prefix, raw.loss, raw.policy) == (Path("/data/raw"), "answers", "chains")
    assert (pairs.prefix, pairs.kind, pairs.copy_of) == (Path("o/indexed/pairs").absolute(), "augmented", "raw")
    assert (blend.mode, blend.train_samples) == ("proportional", 40)
    other = filled_blend(Context(a_recipe(mode="unimax", train_tokens="1k"), tmp_path, ()))
    assert (other.train_tokens, other.train_samples) == (1000, None)


def test_an_arm_has_its_own_weights_and_the_rest_of_the_recipe(tmp_path: Path) -> None:
    arms = {"one": {"pairs": 1}, "two": {"pairs": 1, "raw": 2}}
    study = Study(name="s", output_dir=tmp_path, recipe=Path("r"), arms=arms)
    for base in (a_recipe(mode="uniform", train_tokens=9999), a_recipe(mode="unimax", train_samples=77)):
        for arm, copied in (("one", None), ("two", "raw")):
            recipe = run_recipe(study, base, arm, 1, held_out_sequences=4)
            (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
            blend = load_recipe(tmp_path / "recipe.yaml").blend
            assert blend is not None
            assert {name: source.amount for name, source in blend.sources.items()} == {
                name: ("weight", weight) for name, weight in arms[arm].items()
            }
            assert (blend.sources["pairs"].copy_of, blend.sources["pairs"].max_epochs) == (copied, 9)
            assert (blend.mode, blend.train_tokens, blend.train_samples) == (None, None, None)


def test_an_arm_of_a_proxy_keeps_the_length_it_stands_for(tmp_path: Path) -> None:
    study = Study(name="s", output_dir=tmp_path, recipe=Path("r"), arms={"one": {"raw": 1}, "two": {"pairs": 1}})
    base = a_recipe(mode="uniform", train_tokens="100B", proxy_tokens=640)
    blend = run_recipe(study, base, "one", 1, held_out_sequences=4).blend
    assert blend is not None
    assert (blend.train_tokens, blend.proxy_tokens) == (10**11, 640)


def test_an_ablation_of_a_blend_with_phases_is_refused(tmp_path: Path) -> None:
    later = [{"from_tokens": 320, "sources": {"raw": {"weight": 1}}}]
    study = Study(name="s", output_dir=tmp_path, recipe=Path("r"), arms={"one": {"raw": 1}, "two": {"pairs": 1}})
    with pytest.raises(UserError, match="its blend has phases, and an arm is one mix"):
        check_recipe(study, a_recipe(mode="uniform", phases=later))
