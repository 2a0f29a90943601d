"""What is said of measured steps: percentiles, the ratio of two sides, its interval, and the gate."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import training_figures as figures


def run(*periods: float, **further: Any) -> dict[str, Any]:
    """A run whose warm-up periods are far off."""
    return {"periods_ms": [9e9] * figures.WARM_UP + list(periods), **further}


def case(turns: list[dict[str, Any]], **further: Any) -> dict[str, Any]:
    told = {"processes": 2, "train": {}}
    return {"case": told, "tokens_a_step": 1000, "flops": {"model": 6e6, "hardware": 9e6}, "turns": turns, **further}


def test_a_ratio_is_of_one_turn_so_that_a_slow_machine_slows_both() -> None:
    slow, quick = {"ours": run(200, 400, 200), "bare": run(190)}, {"ours": run(20), "bare": run(19, 19, 30)}
    assert figures.ratios([slow, quick]) == pytest.approx([0.95, 0.95])


def test_the_interval_holds_the_median_and_shrinks_as_turns_agree() -> None:
    wide, narrow = figures.interval([0.9, 0.95, 1.0, 1.05, 1.1] * 2), figures.interval([0.99, 1.0, 1.01] * 4)
    assert 0.9 <= wide[0] < 1.0 < wide[1] <= 1.1
    assert 0.99 <= narrow[0] <= 1.0 <= narrow[1] <= 1.01 and narrow[1] - narrow[0] < wide[1] - wide[0]
    assert figures.interval([0.97]) == (0.97, 0.97)


def test_the_interval_holds_the_true_median_about_nineteen_times_of_twenty() -> None:
    drawn = np.random.default_rng(1)
    within = 0
    for _ in range(200):
        low, high = figures.interval(drawn.normal(1.0, 0.1, 9).tolist(), draws=1000)
        within += low <= 1.0 <= high
    assert 180 <= within <= 200


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([0.96, 0.97, 0.98, 0.99, 1.0, 1.01, 1.02], "above"),
        ([0.90, 0.91, 0.92, 0.93, 0.94, 0.93, 0.92], "below"),
        ([0.90, 0.92, 0.94, 0.95, 0.96, 0.98, 1.0], "not decided"),
        ([1.0] * 5, "not decided"),
        ([], "not decided"),
    ],
)
def test_the_gate_goes_by_the_whole_interval_and_by_enough_turns(values: list[float], told: str) -> None:
    assert figures.verdict(values) == told


def test_the_exit_code_says_below_before_not_decided() -> None:
    assert figures.exit_code(["above", "above"]) == 0
    assert figures.exit_code(["above", "not decided", "below"]) == 1
    assert figures.exit_code(["above", "not decided"]) == 2
    assert figures.exit_code([]) == 2


def test_the_figures_of_a_side_are_of_all_its_turns() -> None:
    first = {"ours": run(100, 100, 100, 200, data_ms=[7.0] * figures.WARM_UP + [1, 1, 1, 2, 50], memory_bytes=5)}
    second = {"ours": run(100, 100, 100, 200, data_ms=[7.0] * figures.WARM_UP + [1, 1, 1, 2, 50], memory_bytes=6)}
    rates = {"bfloat16": {"square": 2e10, "products": 1e11}}
    told = figures.side(case([first, second], rates=rates), "ours")
    assert (told["step_ms"], told["p10_ms"], told["p90_ms"], told["p99_ms"]) == (100, 100, 200, 200)
    assert told["tokens_per_second"] == 5000  # 1,000 tokens in 0.1 s by two processes
    assert told["model_tflops"] == pytest.approx(0.03) and told["hardware_tflops"] == pytest.approx(0.045)
    assert told["share"] == pytest.approx(0.3)  # of the quicker of the two products
    assert told["data_share"] == pytest.approx(0.01) and told["memory_bytes"] == 6


def test_the_share_of_an_fp8_case_is_of_the_cards_fp8_rate() -> None:
    measured = case([], rates={"bfloat16": {"square": 5.0}, "float8": {"square": 9.0}})
    assert figures.matrix_rate(measured) == 5
    measured["case"]["train"] = {"transformer_config": {"fp8": "hybrid"}}
    assert figures.matrix_rate(measured) == 9


def test_no_turn_begins_that_would_end_after_the_budget() -> None:
    assert figures.fits(400, 99, 500) and not figures.fits(402, 99, 500) and figures.fits(1e9, 1e9, None)


def test_the_tables_name_each_case_and_side_once() -> None:
    turns = [{"ours": run(100 + turn), "bare": run(100)} for turn in range(7)]
    found = {"cases": {"small": case(turns), "not begun": case([])}}
    text = "\n".join(figures.table(json.loads(json.dumps(found))))
    assert text.count("| small | ours | ") == text.count("| small | bare | ") == 1 and "not begun" not in text
    assert "| small | 7 | 0.971 | 0.9" in text and "| above |" in text


def test_steps_taken_in_turn_are_compared_one_by_one() -> None:
    turn = {"ours": run(10, 100, 200), "bare": run(11, 110, 150)}
    assert figures.ratios([turn]) == pytest.approx([1.1])  # of the medians too
    turn = {"ours": run(100, 50, 200), "bare": run(50, 100, 220)}
    assert figures.ratios([turn]) == pytest.approx([1.0])
    assert figures.ratios([{**turn, "step_by_step": True}]) == pytest.approx([1.1])


def test_processor_time_is_told_of_the_turns_that_have_it() -> None:
    both = {"ours": run(100, processor_ms=[9e9] * 4 + [50]), "bare": run(100, processor_ms=[9e9] * 4 + [60])}
    assert figures.ratios([both, {"ours": run(1), "bare": run(1)}], "processor_ms") == [1.2]
    text = "\n".join(figures.table({"cases": {"small": case([both]), "old": case([{"ours": run(1), "bare": run(1)}])}}))
    assert "| not decided | 1.200 | 1.200 to 1.200 |" in text and "| not decided |  |  |" in text
