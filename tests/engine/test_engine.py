"""Our settings, presets and tables against the real Transformer Engine, which imports where no GPU is.

    make test-engine ENGINE=/path/to/python        (a Python that has it; tools/gpu_wheels.sh collects its wheels)

What is shown: layers are made with the shapes that `ipt plan` counts, recipes and switches reach them, and what
test_fp8.py and test_gpu_settings.py hold our tables against is what this version says.  Nothing is computed: that is of
tests/gpu.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ENGINE = os.environ.get("IPT_ENGINE_PYTHON", "")

pytestmark = pytest.mark.skipif(not ENGINE, reason="no Python with Transformer Engine: see make test-engine")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("engine") / "found.json"
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [ENGINE, HERE / "engine_worker.py", out], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text(encoding="utf-8"))


def test_presets_are_made_of_its_layers_with_the_planned_shapes(found: Any) -> None:
    """Each stage of each preset: the same Hugging Face tensors, and as many numbers, as in the build of `ipt plan`."""
    assert {name: len(stages) for name, stages in found["presets"].items()} == {
        "from_scratch_500m/recipe.yaml": 1,
        "from_scratch_1.3b/recipe.yaml": 1,
        "llama3_8b_domain/recipe.yaml": 1,
        "llama3_70b_domain/recipe.yaml": 8,
        "llama3_70b_domain/recipe_256.yaml": 4,
    }
    for stages in found["presets"].values():
        for of_engine, of_plan in stages:
            assert of_engine == of_plan and len(of_engine[0]) > 0


@pytest.mark.parametrize("form", ["hybrid", "e4m3"])
def test_recipes_reach_it(found: Any, form: str) -> None:
    known = {"delayed": "TEDelayedScaling", "tensorwise": "Float8CurrentScaling"}
    known |= {"blockwise": "Float8BlockScaling", "mxfp8": "MXFP8BlockScaling"}
    for name, made in known.items():
        assert found["recipes"][f"{name} {form}"] == f"{made} {form.upper()}"


def test_a_step_without_fp8_enters_none(found: Any) -> None:
    assert found["without_fp8"] == ["hybrid", True, "hybrid"]


def test_overlap_reaches_the_products(found: Any) -> None:
    """Those that gather before, and those that scatter after; buffers come first, and a machine without tells why."""
    *products, told = found["overlap"]
    assert products == [["qkv", True, False], ["proj", False, True], ["fc1", True, False], ["fc2", False, True]]
    assert told.startswith("train.transformer_config.tp_comm_overlap: Transformer Engine makes no buffers: ")
    assert "\n" not in told and told.endswith("leave tp_comm_overlap out")


def test_every_layer_would_be_captured(found: Any) -> None:
    assert found["captured"] == 4


def test_short_states_are_taken_by_its_optimizer(found: Any) -> None:
    """With the fp32 masters as the 16 bits that a bf16 weight lacks."""
    assert found["short_states"] == [True, True, "torch.bfloat16"]


def test_a_card_is_asked_before_anything_is_made(found: Any) -> None:
    assert found["cards"].pop("(10, 0)") == "runs"
    for line in found["cards"].values():
        assert "mxfp8 needs compute capability 10.0" in line


def test_the_snapshot_is_what_it_says(found: Any) -> None:
    known = json.loads((HERE.parent / "megatron_ipt" / "transformer_engine_facts.json").read_text(encoding="utf-8"))
    assert found["facts"] == known
