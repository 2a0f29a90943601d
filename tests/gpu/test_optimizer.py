"""Precision-aware optimizer states: moments in 16 bits train as those in 32 do, and survive a restart.

A CPU's Adam has no such states: in a rehearsal both runs have fp32 ones.
"""

from __future__ import annotations

from typing import Any

import pytest

from gpu import runs

TOLERANCE = 0.02
LENGTH = runs.steps(50, 10)
FIELDS = {"use_precision_aware_optimizer": "true", "exp_avg_dtype": "bfloat16", "exp_avg_sq_dtype": "bfloat16"}
AWARE = [] if runs.REHEARSAL else [f"train.optimizer_config.{name}={value}" for name, value in FIELDS.items()]


@pytest.fixture(scope="module")
def ran(setting: runs.Setting) -> dict[str, Any]:
    folder = setting.folder / "aware_halves" / "train" / "checkpoints"
    half = f"train.train_iters={(5 if runs.REHEARSAL else 25)}"
    schedule = ["train.lr_decay_iters=50"]
    return setting.run(
        {
            "plain": ("run", [LENGTH, *schedule]),
            "aware": ("run", [LENGTH, *schedule, *AWARE]),
            "aware_halves": ("run", [half, *schedule, *AWARE]),
            "aware_then": ("run", [LENGTH, *schedule, *AWARE, f"train.load={folder}"]),
        }
    )


@pytest.mark.usefixtures("transformer_engine")
def test_moments_in_16_bits_train_as_those_in_32(ran: dict[str, Any], figures: Any) -> None:
    plain, aware = runs.losses(ran["plain"]), runs.losses(ran["aware"])
    off = runs.end_of(aware) / runs.end_of(plain) - 1
    peaks = {name: max(row["memory_bytes"] for row in runs.rows_of(ran[name], "train")) for name in ("plain", "aware")}
    figures(plain=plain, aware=aware, off=off, memory_bytes=peaks)
    assert runs.end_of(plain) < plain[0] - 0.1 and abs(off) <= TOLERANCE
    assert runs.REHEARSAL or aware != plain, "the states were those in 32 bits"


@pytest.mark.usefixtures("transformer_engine")
def test_they_survive_a_restart(ran: dict[str, Any], figures: Any) -> None:
    halves = runs.losses(ran["aware_halves"]) + runs.losses(ran["aware_then"])
    largest = max(abs(a - b) for a, b in zip(halves, runs.losses(ran["aware"]), strict=True))
    figures(largest_off=largest)
    assert largest <= 1e-3
