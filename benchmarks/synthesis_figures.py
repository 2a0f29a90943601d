"""What the turns of synthesis.py say: rates, ratios of a turn, their medians and intervals.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from training_figures import interval, verdict

Measured = Mapping[str, Any]

TOKENS_GOAL: Final = 50_000
MEGABYTES_GOAL: Final = 3.0
BARE_GOAL: Final = 0.95
ROUNDS_GOAL: Final = 1.3


def marginal(small: Measured, large: Measured) -> float:
    """MB of text a processor second, of the text that the larger run has more: what is done once does not count."""
    seconds = large["processor_seconds"] - small["processor_seconds"]
    return float((large["text_bytes"] - small["text_bytes"]) / 1e6 / seconds)


def fixed(small: Measured, large: Measured) -> float:
    """Processor seconds that a run without text would take, by the line through the two."""
    return float(small["processor_seconds"] - small["text_bytes"] / 1e6 / marginal(small, large))


def whole(run: Measured) -> float:
    """MB of text a processor second of a whole run."""
    return float(run["text_bytes"] / 1e6 / run["processor_seconds"])


def faster(turn: Measured, than: str, clock: str = "seconds") -> float:
    """Completion tokens a second of `ours` over those of another arm, in one turn."""
    ours, other = (turn[arm]["completion_tokens"] / turn[arm][clock] for arm in ("ours", than))
    return float(ours / other)


def told(values: Sequence[float], digits: int = 2) -> str:
    """The median and where it lies, 19 times of 20."""
    low, high = interval(values)
    return f"{float(np.median(values)):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def table(found: Measured) -> list[str]:
    """The tables in Markdown, of each kind that was measured."""
    rows: dict[str, list[str]] = {kind: [] for kind in _HEADS}
    for name, case in found["cases"].items():
        if case["turns"]:
            rows[case["kind"]] += _ROWS[case["kind"]](name, case["turns"])
    return [line for kind, head in _HEADS.items() if rows[kind] for line in (*_head(head), *rows[kind], "")]


_HEADS: Final = {
    "instant": ("engine", "turns", "tokens/s", "tokens a processor second", "most chains in flight", "goal tokens/s"),
    "around": (
        "tokenizer",
        "max_text_tokens",
        "turns",
        "MB a processor second, marginal",
        "against 3",
        "once, processor seconds",
        "MB a processor second, whole larger run",
    ),
    "vllm": ("case", "ours over", "turns", "by the clock", "in processor time", "goal", "by the clock it is"),
}


def _head(names: Sequence[str]) -> tuple[str, str]:
    return _line(*names), "|" + "---|" * len(names)


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _instant(_: str, turns: Sequence[Measured]) -> list[str]:
    rows = []
    for side in turns[0]["runs"]:
        runs = [turn["runs"][side] for turn in turns]
        rates = [run["completion_tokens"] / run["engine_seconds"] for run in runs]
        computed = [run["completion_tokens"] / run["processor_seconds"] for run in runs]
        most = min(run["most_in_flight"] for run in runs)
        against = f"{TOKENS_GOAL:,}: {verdict(rates, TOKENS_GOAL)}"
        rows.append(_line(side, len(runs), told(rates, 0), told(computed, 0), f"{most:,}", against))
    return rows


def _around(_: str, turns: Sequence[Measured]) -> list[str]:
    rows = []
    for key in turns[0]["runs"]:
        pairs = [turn["runs"][key] for turn in turns if key in turn["runs"]]
        rates, once = [marginal(*pair) for pair in pairs], [fixed(*pair) for pair in pairs]
        against = verdict(rates, MEGABYTES_GOAL)
        wholes = [whole(pair[1]) for pair in pairs]
        rows.append(_line(*key.split(", "), len(pairs), told(rates), against, told(once), told(wholes)))
    return rows


def _vllm(name: str, turns: Sequence[Measured]) -> list[str]:
    rows = []
    for arm, goal in (("bare", BARE_GOAL), ("rounds", ROUNDS_GOAL)):
        clock = [faster(turn["runs"], arm) for turn in turns]
        processor = [faster(turn["runs"], arm, "processor_seconds") for turn in turns]
        rows.append(_line(name, arm, len(turns), told(clock), told(processor), goal, verdict(clock, goal)))
    return rows


_ROWS: Final = {"instant": _instant, "around": _around, "vllm": _vllm}
