"""The paper's models from scratch: the recipes are of its numbers, and transformers builds the same models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from data_prep.settings import BlendSettings
from megatron_ipt.architecture import check_layout, with_settings
from megatron_ipt.convert.families import FAMILIES
from megatron_ipt.recipe import load_recipe, load_settings, section

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "world", "parameters", "tokens", "steps", "lr"),
    [
        ("from_scratch_500m", 8, 517_522_944, 524_288, 200_000, 3e-4),
        ("from_scratch_1.3b", 16, 1_347_504_128, 1_048_576, 100_000, 2e-4),
    ],
)
def test_a_recipe_is_the_papers(name: str, world: int, parameters: int, tokens: int, steps: int, lr: float) -> None:
    """The readme's figures too, and every sample of the blend that both share is trained on once."""
    recipe = load_recipe(EXAMPLES / name / "recipe.yaml")
    model, train = section(recipe, "model"), section(recipe, "train")
    architecture = with_settings(None, model)
    check_layout(architecture, train, world)
    assert (train.global_batch_size * train.seq_length, train.train_iters, train.lr) == (tokens, steps, lr)
    blend = load_settings(BlendSettings, EXAMPLES / "from_scratch_500m" / "blend.yaml")
    assert (blend.seq_length, blend.mode) == (train.seq_length, "paper_from_scratch")
    assert blend.train_samples == train.train_iters * train.global_batch_size
    written = FAMILIES[architecture.family].config_json(architecture, train.seq_length)
    config = AutoConfig.for_model(**written)
    assert config.sliding_window == 2048
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config)
    assert type(theirs).__name__ == "MistralForCausalLM"
    assert sum(weight.numel() for weight in theirs.parameters()) == architecture.parameters() == parameters
    readme = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    assert f"{parameters:,} parameters" in readme
    assert f"examples/{name}/recipe.yaml --world-size {world}" in readme
