"""A checkpoint written on the CPU is continued on the GPU, and back; the run that never stopped is the oracle.

The CPU has the local layers, the GPU Transformer Engine's, so the losses are those of bf16 in two programs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpu import runs

TOLERANCE = 5e-3
"""Of a loss, relative.  The loss of a step without the steps before it is off by ten times as much and more."""
HALF, WHOLE = 6, 12
OTHER = {"cpu": "gpu", "gpu": "cpu"}
FORMS = {"fully_reshardable": "true", "dp_reshardable": "false"}
SMALL = {"layers": 2, "hidden": 256, "ffn": 704, "heads": 4, "groups": 2}
"""A model that a CPU trains in seconds."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, write_dataset: Any) -> runs.Setting:
    sizes = runs.TINY_MODEL if runs.REHEARSAL else SMALL
    return runs.make(tmp_path_factory.mktemp("checkpoints"), write_dataset, sizes)


@pytest.fixture(scope="module")
def unstopped(small: runs.Setting) -> dict[str, Any]:
    """On either device, saved in the middle in both forms: the last save is always one that any layout loads."""
    saved = [f"train.train_iters={WHOLE}", f"train.save_interval={HALF}"]
    found: dict[str, Any] = {}
    for place in OTHER:
        jobs = {f"{place} {form}": ("run", [*saved, in_form(form)]) for form in FORMS}
        found |= small.run(jobs, on=place)
    return found


@pytest.fixture(scope="module")
def continued(small: runs.Setting, unstopped: dict[str, Any]) -> dict[str, Any]:
    """On the other device than the one that saved, whose name they have."""
    found: dict[str, Any] = {}
    for place, there in OTHER.items():
        jobs = {
            f"{place} {form}, continued": (
                "run",
                [f"train.train_iters={WHOLE}", f"train.load={middle(small, place, form)}", in_form(form)],
            )
            for form in FORMS
        }
        found |= small.run(jobs, on=there)
    return found


def in_form(form: str) -> str:
    return f"train.dist_ckpt_optim_fully_reshardable={FORMS[form]}"


def middle(small: runs.Setting, place: str, form: str) -> Path:
    return small.folder / f"{place} {form}" / "train" / "checkpoints" / f"iter_{HALF:07d}"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("first", ["cpu", "gpu"])
def test_a_run_goes_on_on_the_other_device(
    first: str, form: str, small: runs.Setting, unstopped: dict[str, Any], continued: dict[str, Any], figures: Any
) -> None:
    card = json.loads((middle(small, first, form) / "run_card.json").read_text(encoding="utf-8"))
    assert card["sharding_type"] == form
    whole, then = (
        runs.losses(found) for found in (unstopped[f"{first} {form}"], continued[f"{first} {form}, continued"])
    )
    off = [abs(a - b) / b for a, b in zip(then, whole[HALF:], strict=True)]
    moved = (whole[0] - whole[HALF]) / whole[HALF]
    figures(unstopped=whole, continued=then, largest_off=max(off), moved_before=moved)
    assert moved > 10 * TOLERANCE, "too little was learned before the checkpoint to be missed"
    assert max(off) <= TOLERANCE


def test_both_devices_agree_from_the_start(unstopped: dict[str, Any], figures: Any) -> None:
    a, b = (runs.losses(unstopped[f"{place} fully_reshardable"]) for place in ("cpu", "gpu"))
    off = max(abs(x - y) / y for x, y in zip(a, b, strict=True))
    figures(largest_off=off)
    assert off <= TOLERANCE
