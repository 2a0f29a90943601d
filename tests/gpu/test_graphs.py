"""CUDA graphs replay the same kernels: a run with them has the losses of one without.

In a rehearsal no run has graphs: a CPU has none.
"""

from __future__ import annotations

from typing import Any

import pytest

from gpu import runs

KINDS = ("local", "transformer_engine")
STEPS = runs.steps(20, 3)


def overrides(kind: str) -> list[str]:
    return [] if runs.REHEARSAL else [f"train.transformer_config.cuda_graph_impl={kind}"]


@pytest.fixture(scope="module")
def plain(setting: runs.Setting) -> list[float]:
    return runs.losses(setting.run({"plain": ("run", [STEPS])})["plain"])


@pytest.mark.usefixtures("transformer_engine")
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_a_run_without_graphs(
    kind: str, setting: runs.Setting, plain: list[float], figures: Any
) -> None:
    name = f"graphs_{kind}"
    found = setting.run({name: ("run", [STEPS, *overrides(kind)])})[name]
    series = runs.losses(found)
    largest = max(abs(a - b) for a, b in zip(series, plain, strict=True))
    steady = [row["step_seconds"] for row in runs.rows_of(found, "train")][-5:]
    figures(loss=series, largest_off=largest, bit_equal=series == plain, last_step_seconds=steady)
    assert largest <= 1e-6
