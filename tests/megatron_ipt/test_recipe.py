"""Recipes: every key checked, overrides, and what a fault says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from data_prep.errors import UserError
from megatron_ipt.recipe import load_recipe, to_yaml

TRAIN = {"global_batch_size": 4, "seq_length": 64, "train_iters": 10, "lr": 1e-3}
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*/recipe*.yaml"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "output_dir": "out", "train": TRAIN}), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_every_example_loads(path: Path) -> None:
    assert load_recipe(path).name


def test_overrides_change_nested_keys_and_keep_their_types(recipe: Path) -> None:
    found = load_recipe(recipe, ["train.train_iters=5", "train.lr=2e-4", "train.bf16=false", "model.num_layers=3"])
    assert (found.train.train_iters, found.train.lr, found.train.bf16) == (5, 2e-4, False)
    assert found.model.num_layers == 3


def test_the_resolved_recipe_reads_back_as_itself(recipe: Path, tmp_path: Path) -> None:
    found = load_recipe(recipe)
    again = tmp_path / "resolved.yaml"
    again.write_text(to_yaml(found), encoding="utf-8")
    assert load_recipe(again) == found


def test_interpolation_refers_to_other_keys(recipe: Path) -> None:
    assert load_recipe(recipe, ["train.save=${output_dir}/here"]).train.save == Path("out/here")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.train_itres=5", "unknown key 'train.train_itres'; did you mean 'train_iters'?"),
        ("train.zzz=5", "unknown key 'train.zzz'; the nearest names are "),
        ("trian.lr=1", "unknown key 'trian'; did you mean 'train'?"),
        ("blend.sources.a.wieght=2", "unknown key 'blend.sources.a.wieght'; did you mean 'weight'?"),
        ("train.lr=fast", "train.lr='fast'"),
        ("train.lr=-1", "train.lr=-1"),
        ("train.lr_decay_style=cosin", "'constant', 'linear', 'cosine'"),
        ("train.lr_warmup_iters=10", "lr_warmup_iters=10 must be less than"),
        ("train.train_iters=0x", "train.train_iters='0x'"),
        ("train.sequence_parallel=true", "sequence_parallel needs tensor_model_parallel_size > 1"),
        ("train.virtual_pipeline_model_parallel_size=2", "needs pipeline_model_parallel_size > 1"),
        ("train.overlap_param_gather=true", "overlap_param_gather needs use_distributed_optimizer and overlap_grad"),
        ("train.recompute_granularity=full", "recompute_granularity: full needs recompute_method"),
        (
            "train.recompute_modules=[mlp]",
            "recompute_modules goes with recompute_granularity: selective",
        ),
        ("train.pipeline_model_parallel_layout=EttL", "layout needs pipeline_model_parallel_size > 1"),
        ("model.window_size=[8,8]", "use [W - 1, 0], W at least 1: attention is causal"),
        ("train.min_lr=1", "min_lr=1.0 must not exceed lr"),
        ("train.fp8", "not an override"),
        ("--only", "not an override"),
        ("train.save=${nowhere}", "not readable YAML"),
    ],
)
def test_a_fault_is_one_line_with_key_and_mend(recipe: Path, override: str, told: str) -> None:
    with pytest.raises(UserError) as raised:
        load_recipe(recipe, [override])
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a: [1", "not readable YAML"),
        ("- 1\n- 2\n", "not a"),
        ("", "missing"),
        ("name: x\n", "'output_dir' is missing"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"bad\.yaml") as raised:
        load_recipe(path)
    assert told in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_recipe(tmp_path / "none.yaml")
