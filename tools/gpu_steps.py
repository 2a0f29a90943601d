"""The steps of tools/gpu_check.sh, and what of them is left to do.  Pure, standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from data_prep.errors import UserError, nearest

LIMIT: Final = 540
"""A step is ended after so long: some places end a command after 10 minutes [s]."""
SPEED_SECONDS: Final = 480
"""What the benchmark is told to keep within [s]."""
TURNS: Final = 3
"""Runs of each side that a measurement of speed has at least; a call that ends with fewer is gone on with."""


@dataclass(frozen=True, slots=True)
class Step:
    """A file of tests/gpu, or a case of benchmarks/training.py; `expected` is a guess, nothing was timed yet [s].

    `select` is pytest's -k: of a file, the tests with that in their names.
    """

    name: str
    shows: str
    expected: int
    tests: str = ""
    select: str = ""
    case: str = ""


def _tests(name: str, shows: str, expected: int) -> Step:
    return Step(name, shows, expected, tests=f"tests/gpu/test_{name}.py")


def _fp8(recipe: str) -> Step:
    shows = f"{recipe} FP8 against bf16: loss after 50 steps, and the shadow probe"
    return Step(f"fp8-{recipe}", shows, 240, tests="tests/gpu/test_fp8.py", select=recipe)


def _speed(case: str) -> Step:
    return Step(f"speed-{case}", f"tokens/s of {case}, ours and the bare loop's in turn", SPEED_SECONDS, case=case)


STEPS: Final = (
    _tests("doctor", "the card's name, what is installed, and that training can run here", 60),
    _tests("layers", "Transformer Engine's layers against the local ones: loss, logits, gradients", 120),
    _tests("parity", "fp32 against transformers through the parity gate; what an fp32 product loses", 120),
    *map(_fp8, ("delayed", "tensorwise", "blockwise", "mxfp8")),
    _tests("checkpoints", "a checkpoint written on the CPU continued on the GPU, and back", 180),
    _tests("graphs", "CUDA graphs change nothing", 180),
    _tests("documents", "packed documents against each document alone, on fused attention", 120),
    _tests("optimizer", "precision-aware optimizer states against fp32 ones", 120),
    *(
        _speed(f"{model}-{numbers}")
        for model in ("llama3.2-1b", "8b-8-layers", "8b-16-layers", "8b")
        for numbers in ("bf16", "fp8")
    ),
)
NAMES: Final = tuple(step.name for step in STEPS)


def chosen(names: Sequence[str]) -> list[Step]:
    """The steps of these names in their own order; all without a name.  UserError for a name that is none."""
    for name in names:
        if name not in NAMES:
            raise UserError(name, "is no step", nearest(name, NAMES))
    return [step for step in STEPS if not names or step.name in names]


def is_done(row: Mapping[str, Any] | None, rehearsal: bool, wheels: str) -> bool:
    """Whether a step need not be run again: it ended well, in this mode and with these wheels."""
    if row is None or row.get("rehearsal") != rehearsal or row.get("wheels") != wheels:
        return False
    return row.get("status") in ("passed", "skipped")


def status_of_tests(code: int, tests: Mapping[str, Mapping[str, Any]]) -> str:
    """Of a file of tests: `skipped` where none ran, which is no failure and shows nothing either."""
    if code == 124:
        return "cut"
    if code != 0 or not tests:
        return "failed"
    return "passed" if any(test["outcome"] == "passed" for test in tests.values()) else "skipped"


def status_of_speed(code: int, case: str, figures: Mapping[str, Any]) -> str:
    """Of the benchmark, whose file of figures grows from call to call: `cut` where it has too few turns."""
    if code not in (0, 124):
        return "failed"
    return "passed" if len(figures.get("cases", {}).get(case, {}).get("turns", ())) >= TURNS else "cut"


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line a step."""
    width = max(len(step.name) for step in STEPS)
    lines = []
    for step in STEPS:
        row = rows.get(step.name)
        told = "not run" if row is None else f"{row['status']}, {row.get('seconds', 0):.0f} s"
        lines.append(f"{step.name:{width}}  {told}")
    return lines
