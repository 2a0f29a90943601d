"""When FP8 is watched, and when it is left for a while."""

from __future__ import annotations

import math

import pytest

from megatron_ipt.settings.precision import PrecisionSettings
from megatron_ipt.training.shadow import Shadow, relative


def test_every_so_many_steps_are_watched() -> None:
    shadow = Shadow(interval=3)
    assert [iteration for iteration in range(1, 10) if shadow.is_due(iteration, 9)] == [3, 6, 9]
    assert not any(Shadow().is_due(iteration, 9) for iteration in range(1, 10))


@pytest.mark.parametrize(("difference", "falls_back"), [(0.02, False), (-0.02, False), (0.021, True), (-0.021, True)])
def test_a_difference_above_the_tolerance_leaves_fp8_for_a_window(difference: float, falls_back: bool) -> None:
    after = Shadow(interval=2, tolerance=0.02, fallback_iters=3).after(4, difference)
    assert [iteration for iteration in range(1, 10) if after.is_full(iteration) and iteration > 4] == (
        [5, 6, 7] if falls_back else []
    )
    # step 6 is in the window and has no FP8 to watch, step 8 is watched again
    assert [iteration for iteration in (6, 8) if after.is_due(iteration, 9)] == ([8] if falls_back else [6, 8])


def test_a_batch_without_a_label_that_counts_has_no_losses_to_compare() -> None:
    assert Shadow(interval=1).is_due(1, 1) and not Shadow(interval=1).is_due(1, 0)


def test_a_loss_that_is_no_number_is_a_large_difference() -> None:
    assert Shadow(interval=1, tolerance=1e3, fallback_iters=1).after(1, relative(math.nan, 2.0)).is_full(2)


def test_without_a_tolerance_it_only_tells() -> None:
    assert Shadow(interval=1).after(1, 5.0) == Shadow(interval=1)


def test_the_window_survives_a_resume() -> None:
    before = Shadow(interval=2, tolerance=0.1, fallback_iters=5).after(4, 0.2)
    after = Shadow(interval=2, tolerance=0.1, fallback_iters=5).restored(before.state())
    assert after == before
    assert Shadow(interval=2).restored({}) == Shadow(interval=2)
    assert Shadow().restored(before.state()) == Shadow()  # the probe was taken out, and its window with it


def test_a_tolerance_without_a_probe_is_refused() -> None:
    with pytest.raises(ValueError, match="fp8_shadow_tolerance needs fp8_shadow_interval"):
        PrecisionSettings(fp8_shadow_tolerance=0.02)
