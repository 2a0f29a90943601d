"""Each FP8 recipe that the card has against bf16, on the same text from the same weights.

In a rehearsal the local layers round to 8 bits in the recipe's format: the same run for all recipes of one format.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from gpu import runs
from megatron_ipt.mcore.fp8 import CARDS

TOLERANCE = 0.02
OF_LOGITS = (5e-3, 0.2)
"""How far FP8's logits are from bf16's, relative: eight bits show, and a wrong scale would be off by more."""
FIRST = ("delayed hybrid", "tensorwise hybrid", "blockwise e4m3", "mxfp8 e4m3")
"""The recipes whose logits are looked at, one of each kind."""
STEPS = [runs.steps(50, 12), "train.fp8_shadow_interval=10"]
FIRST_LAST = {"first_last_layers_bf16": True}
RECIPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "delayed hybrid": ("delayed", "hybrid", {}),
    "delayed e4m3": ("delayed", "e4m3", {}),
    "tensorwise hybrid": ("tensorwise", "hybrid", {}),
    "tensorwise e4m3": ("tensorwise", "e4m3", {}),
    "tensorwise, first and last in bf16": ("tensorwise", "hybrid", FIRST_LAST),
    "tensorwise, weights in FP8": ("tensorwise", "hybrid", {"fp8_param": True}),
    "blockwise e4m3": ("blockwise", "e4m3", {}),
    "blockwise hybrid": ("blockwise", "hybrid", {}),
    "blockwise, first and last in bf16": ("blockwise", "e4m3", FIRST_LAST),
    "mxfp8 e4m3": ("mxfp8", "e4m3", {}),
    "mxfp8, first and last in bf16": ("mxfp8", "e4m3", FIRST_LAST),
}


def overrides(recipe: str, fp8: str, more: dict[str, Any]) -> list[str]:
    if runs.REHEARSAL:
        return [f"train.fp8_emulation={fp8}"]
    fields = {"fp8": fp8, "fp8_recipe": recipe, **more}
    return [f"train.transformer_config.{name}={str(value).lower()}" for name, value in fields.items()]


def skip_without(recipe: str) -> None:
    """Skips where the card lacks what the recipe needs."""
    capability, needed = runs.card()["capability"], CARDS[recipe]
    if capability is not None and not needed.at_least <= tuple(capability) < needed.below:
        pytest.skip(f"{recipe} needs {needed}, {runs.card()['name']} has compute capability {capability}")


@pytest.mark.usefixtures("transformer_engine")
@pytest.mark.parametrize("name", FIRST)
def test_logits_are_those_of_bf16_in_eight_bits(name: str, setting: runs.Setting, figures: Any) -> None:
    """On the same weights and batch, where a run's loss would hide much: it learns around what is wrong."""
    recipe, fp8, more = RECIPES[name]
    skip_without(recipe)
    jobs = {"plain": ("step", []), "eight": ("step", overrides(recipe, fp8, more))}
    found = setting.run(jobs)
    plain, eight = found["plain"], found["eight"]
    off = runs.off(eight["logits"], plain["logits"])
    gradients = [runs.off(value, plain["gradients"][key]) for key, value in eight["gradients"].items()]
    figures(logits_off=off, gradient_off=max(gradients), loss=eight["loss"], bf16_loss=plain["loss"])
    assert OF_LOGITS[0] < off < OF_LOGITS[1]


@pytest.fixture(scope="module")
def bf16(setting: runs.Setting) -> list[float]:
    return runs.losses(setting.run({"bf16": ("run", [STEPS[0]])})["bf16"])


@pytest.fixture(scope="module")
def emulated() -> dict[str, Any]:
    """Runs of the rehearsal, a format each."""
    return {}


@pytest.mark.usefixtures("transformer_engine")
@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_stays_within_two_per_cent_of_bf16(
    name: str, setting: runs.Setting, bf16: list[float], emulated: dict[str, Any], figures: Any
) -> None:
    recipe, fp8, more = RECIPES[name]
    skip_without(recipe)
    key = f"fp8 {fp8}" if runs.REHEARSAL else name
    if key not in emulated:
        emulated |= setting.run({key: ("run", [*STEPS, *overrides(recipe, fp8, more)])})
    found = emulated[key]
    series, shadows = runs.losses(found), runs.rows_of(found, "shadow")
    off = runs.end_of(series) / runs.end_of(bf16) - 1
    figures(
        bf16_first_and_last=[bf16[0], runs.end_of(bf16)],
        last=runs.end_of(series),
        off=off,
        shadow_differences={row["iteration"]: row["difference"] for row in shadows},
        loss=series,
    )
    assert len(series) == len(bf16) and runs.end_of(bf16) < bf16[0] - 0.1, "bf16 learned nothing: no comparison"
    assert abs(off) <= TOLERANCE
    assert len(shadows) == len(series) // 10 and all(math.isfinite(row["difference"]) for row in shadows)
    assert any(row["difference"] != 0 for row in shadows), "the probe saw no FP8"
