"""The step `export` of `ipt run`: what it tells the exporter of the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ipt.cli import pipeline, steps
from megatron_ipt.recipe import load_recipe

SCRATCH = {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4, "vocab_size": 100}
TRAIN = {"global_batch_size": 1, "seq_length": 64, "train_iters": 1, "lr": 1e-3}


@pytest.mark.parametrize(
    ("model", "source", "tokenizer"),
    [(SCRATCH, None, "bytes"), ({"load_hf": "hf"}, "hf", None)],
    ids=["from_scratch", "from_weights"],
)
def test_a_model_from_scratch_gets_the_tokenizer_of_its_data(
    model: dict[str, Any], source: str | None, tokenizer: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the exported model could not be evaluated; one that began from weights has its own."""
    recipe = tmp_path / "recipe.yaml"
    content = {
        "name": "r",
        "output_dir": str(tmp_path),
        "model": model,
        "train": TRAIN,
        "index": {"tokenizer": "bytes"},
    }
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(steps, "export", lambda *given, tokenizer: told.append((*given[2:], tokenizer)))
    run = pipeline.Context(load_recipe(recipe, []), recipe, [])
    next(step for step in pipeline.STEPS if step.name == "export").action(run)
    (found,) = told
    assert [path and path.name for path in found] == [source, tokenizer]
