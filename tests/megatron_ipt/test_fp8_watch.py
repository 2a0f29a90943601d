"""FP8 beside the same batch without it, in real runs: emulated on this machine's layers."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import TinyRun, losses

FP8 = ["train.parity_gate=false", "train.held_out=null", "train.fp8_emulation=hybrid"]
WATCHED = [*FP8, "train.fp8_shadow_interval=1", "train.train_iters=3"]
TP2 = ["train.tensor_model_parallel_size=2", "train.sequence_parallel=true", "train.micro_batch_size=4"]
OVERLAPPED = ["train.overlap_grad_reduce=true", "train.overlap_param_gather=true"]
STILL = ["train.parity_gate=false", "train.lr=1e-30", "train.train_iters=1", "train.eval_interval=1"]
FALLING = [*FP8, *TP2, "train.fp8_shadow_interval=2", "train.fp8_shadow_tolerance=1e-9", "train.fp8_fallback_iters=3"]


@pytest.fixture(scope="module")
def ran(tiny: TinyRun, train_layouts: Any) -> Any:
    jobs = {
        "fp8_off": ["train.parity_gate=false", "train.held_out=null", "train.train_iters=1"],
        "fp8_watched": [*WATCHED, *TP2, "train.parity_gate=true"],
        "fp8_gathered": [*FP8, *OVERLAPPED, "train.train_iters=3"],
        "fp8_gathered_watched": [*WATCHED, *OVERLAPPED],
        "fp8_still": [*STILL, *FP8[2:], "train.fp8_shadow_interval=1", "train.fp8_shadow_tolerance=1e-9"],
        "fp8_still_off": STILL,
        "fp8_watched_pp2": [*WATCHED, "train.pipeline_model_parallel_size=2"],
        "fp8_falling": [*FALLING, "train.train_iters=7"],
        "fp8_first": [*FALLING, "train.train_iters=4"],
        "fp8_then": [*FALLING, "train.train_iters=7", f"train.save={tiny.folder}/fp8_first/train/checkpoints"],
    }
    return train_layouts(2, jobs)


def shadows(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {row["iteration"]: row for row in rows if row["kind"] == "shadow"}


@pytest.mark.parametrize("run", ["fp8_watched", "fp8_watched_pp2"])
def test_the_batch_without_fp8_has_the_loss_of_a_run_without(ran: Any, run: str) -> None:
    (plain,) = losses(ran["fp8_off"])
    first = shadows(ran[run])[1]
    assert first["full_loss"] == pytest.approx(plain, abs=2e-6)
    assert [row["loss"] for row in shadows(ran[run]).values()] == losses(ran[run])
    for row in shadows(ran[run]).values():
        assert row["difference"] == (row["loss"] - row["full_loss"]) / row["full_loss"]
    assert 1e-5 < max(abs(row["difference"]) for row in shadows(ran[run]).values()) < 2e-3  # rounded, and close


def test_watching_changes_nothing(ran: Any) -> None:
    """Up to the first fall the steps of a run that watches now and then are those of one that always does."""
    assert losses(ran["fp8_falling"])[:2] == losses(ran["fp8_watched"])[:2]


def test_watching_leaves_the_update_to_be_gathered(ran: Any) -> None:
    """Two replicas that gather weights in the forward pass: the one without FP8 must not count as the next step's."""
    assert losses(ran["fp8_gathered_watched"]) == losses(ran["fp8_gathered"])


def test_a_window_is_taken_without_fp8(ran: Any) -> None:
    """From step 3 to 5: the third loss is what the watched run has without FP8 in its third step."""
    assert list(shadows(ran["fp8_falling"])) == [2, 6]
    assert [row["full_until"] for row in shadows(ran["fp8_falling"]).values()] == [5, 9]
    assert losses(ran["fp8_falling"])[2] == shadows(ran["fp8_watched"])[3]["full_loss"]
    assert losses(ran["fp8_falling"])[2] != losses(ran["fp8_watched"])[2]


def test_held_out_text_is_read_as_the_next_step_computes(ran: Any) -> None:
    """With weights that stay, the window that step 1 opens is all that can change the loss."""
    before, within = (row["loss"] for row in ran["fp8_still"] if row["kind"] == "validation")
    off, off_after = (row["loss"] for row in ran["fp8_still_off"] if row["kind"] == "validation")
    assert off == off_after == within
    assert 0 < abs(before - off) < 1e-3


def test_the_gate_looks_at_the_model_without_fp8(ran: Any) -> None:
    (told,) = (row for row in ran["fp8_watched"] if row["kind"] == "parity")
    assert told["passed"] and told["max_dlogit"] < 1e-4


def test_the_window_survives_a_resume(ran: Any) -> None:
    assert losses(ran["fp8_first"]) + losses(ran["fp8_then"]) == losses(ran["fp8_falling"])
    assert list(shadows(ran["fp8_then"])) == [6]
