"""What the periods of measured steps say: rates, percentiles, and how two sides compare.  Pure.

A turn is one run of each side.  Where the two went step by step (`steps.py`), its ratio is the median of the bare
loop's period over ours, step by step; where one followed the other, the bare loop's median period over ours.  The same
is told of processor time, which says what was computed, whoever else used the machine.  The figure is the median of
the ratios of all turns.  Its interval is from a bootstrap: as many turns drawn from them with replacement, 10,000
times, the middle 95 % of the medians.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

WARM_UP: Final = 4
"""Periods at the start of a run that are not counted: memory is found, kernels are chosen."""
GOAL: Final = 0.95
FEWEST_TURNS: Final = 6
"""The median lies between the least and the largest of n turns with probability 1 - 2^(1-n): 97 % from 6 on."""

Turns = Sequence[Mapping[str, Any]]


def counted(told: Mapping[str, Any], clock: str = "periods_ms") -> list[float]:
    """The periods of one run that count [ms]."""
    return list(told[clock][WARM_UP:])


def fits(elapsed: float, expected: float, budget: float | None) -> bool:
    """Whether a turn of `expected` seconds ends within the budget."""
    return budget is None or elapsed + expected <= budget


def ratios(turns: Turns, clock: str = "periods_ms") -> list[float]:
    """Ours over the bare loop in speed, turn by turn; none of a turn that was not measured by that clock."""
    return [_ratio(turn, clock) for turn in turns if clock in turn["ours"] and clock in turn["bare"]]


def _ratio(turn: Mapping[str, Any], clock: str) -> float:
    bare, ours = (np.array(counted(turn[side], clock)) for side in ("bare", "ours"))
    if turn.get("step_by_step"):
        return float(np.median(bare / ours))
    return float(np.median(bare) / np.median(ours))


def interval(values: Sequence[float], *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Between which two the median of such values lies, 19 times of 20."""
    drawn = np.random.default_rng(seed).choice(np.asarray(values, float), (draws, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


def verdict(values: Sequence[float], goal: float = GOAL) -> str:
    """`above` or `below` the goal with all of the interval, else `not decided`; a few turns decide nothing."""
    if len(values) < FEWEST_TURNS:
        return "not decided"
    low, high = interval(values)
    if low >= goal:
        return "above"
    return "below" if high < goal else "not decided"


def exit_code(verdicts: Sequence[str]) -> int:
    """0: all above the goal; 1: one is below; 2: nothing is below, but not all is decided."""
    if "below" in verdicts:
        return 1
    return 0 if verdicts and all(each == "above" for each in verdicts) else 2


def side(measured: Mapping[str, Any], name: str) -> dict[str, float]:
    """The figures of `ours` or `bare` over all periods of all turns, a GPU (or process) each where they are rates."""
    runs = [turn[name] for turn in measured["turns"]]
    periods = np.array([period for run in runs for period in counted(run)])
    p10, median, p90, p99 = np.percentile(periods, [10, 50, 90, 99])
    tokens = 1e3 * measured["tokens_a_step"] / median / measured["case"]["processes"]
    found = {
        "tokens_per_second": tokens,
        "step_ms": median,
        "p10_ms": p10,
        "p90_ms": p90,
        "p99_ms": p99,
        "model_tflops": tokens * measured["flops"]["model"] / 1e12,
        "hardware_tflops": tokens * measured["flops"]["hardware"] / 1e12,
        "memory_bytes": max(run.get("memory_bytes", 0) for run in runs),
    }
    rate = matrix_rate(measured)
    if rate:
        found["share"] = found["model_tflops"] * 1e12 / rate
    if all("data_ms" in run for run in runs):
        waits = [wait for run in runs for wait in run["data_ms"][WARM_UP : len(run["periods_ms"])]]
        found["data_share"] = sum(waits) / float(periods.sum())
    return {key: float(value) for key, value in found.items()}


def matrix_rate(measured: Mapping[str, Any]) -> float:
    """The most that matrix products alone reached here in the case's number format [FLOP/s]."""
    fp8 = measured["case"]["train"].get("transformer_config", {}).get("fp8")
    rates = measured.get("rates", {})
    return max(rates.get("float8" if fp8 else "bfloat16", {}).values(), default=0.0)


def table(found: Mapping[str, Any]) -> list[str]:
    """Two tables in Markdown: the sides, and how they compare."""
    rows = [
        "| case | side | tokens/s a process | step ms | p10 | p90 | p99 | TFLOP/s, causal | full | of matrix rate "
        "| data wait | GB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    against = [
        "",
        "| case | turns | ours / bare | 95 % interval | against 0.95 | in processor time | 95 % interval |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, measured in found["cases"].items():
        turns = measured["turns"]
        if not turns:
            continue
        rows += [_row(name, each, side(measured, each)) for each in ("ours", "bare")]
        compared, processor = ratios(turns), ratios(turns, "processor_ms")
        cells = [name, str(len(turns)), *_middle(compared), verdict(compared), *_middle(processor)]
        against.append(f"| {' | '.join(cells)} |")
    return rows + against


def _middle(values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "", ""
    low, high = interval(values)
    return f"{float(np.median(values)):.3f}", f"{low:.3f} to {high:.3f}"


def _row(name: str, which: str, told: Mapping[str, float]) -> str:
    share = f"{told['share']:.1%}" if "share" in told else ""
    waits = f"{told['data_share']:.2%}" if "data_share" in told else ""
    times = " | ".join(f"{told[key]:,.0f}" for key in ("step_ms", "p10_ms", "p90_ms", "p99_ms"))
    flops = f"{told['model_tflops']:.4g} | {told['hardware_tflops']:.4g}"
    memory = f"{told['memory_bytes'] / 1e9:.1f}" if told["memory_bytes"] else ""
    return f"| {name} | {which} | {told['tokens_per_second']:,.0f} | {times} | {flops} | {share} | {waits} | {memory} |"
