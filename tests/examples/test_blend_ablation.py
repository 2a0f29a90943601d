"""The ablation's own study: it fits its recipe, and, cut short, it runs from raw text to the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ipt.ablate.study import Study, check_recipe
from megatron_ipt.architecture import with_settings
from megatron_ipt.recipe import load_recipe, load_settings, section

STUDY = Path(__file__).parents[2] / "examples" / "blend_ablation" / "study.yaml"


def test_the_study_fits_its_recipe_and_its_model_is_as_small_as_it_says() -> None:
    study = load_settings(Study, STUDY)
    recipe = load_recipe(STUDY.parent / study.recipe)
    check_recipe(study, recipe)
    assert len(study.runs()) == 6
    layer = 4 * 48 * 48 + 3 * 48 * 128 + 2 * 48
    assert with_settings(None, section(recipe, "model")).parameters() == 49_152 * 48 + 2 * layer + 48 == 2_414_832


@pytest.mark.long
def test_the_study_cut_short(tmp_path: Path) -> None:
    short = ["synthesize.documents=3", "synthesize.max_new_tokens=64", "train.lr_warmup_iters=0", "train.train_iters=2"]
    changed = ",".join([f"output_dir={tmp_path / 'data'}", "fetch.held_out_documents=2", *short])
    command = [sys.executable, "-m", "megatron_ipt.cli.main", "ablate", str(STUDY), f"output_dir={tmp_path / 'study'}"]
    done = subprocess.run(
        [*command, f"overrides=[{changed}]"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "study" / "results.json").read_text(encoding="utf-8"))
    assert [arm["arm"] for arm in found["arms"]] == ["raw", "mix", "augmented"]
    assert {run["samples"] for run in found["runs"]} == {16}
    assert "smoke test" in (tmp_path / "study" / "ablation.html").read_text(encoding="utf-8")
