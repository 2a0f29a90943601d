"""Skips tests/gpu where no GPU is and nobody rehearses, and writes what each test found to IPT_GPU_FIGURES."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu import runs

FIGURES = os.environ.get("IPT_GPU_FIGURES")
HERE = Path(__file__).parent
_TESTS: dict[str, dict[str, Any]] = {}
"""Of each test by name: outcome, seconds, figures, and why it was skipped or failed."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    if not ours or runs.REHEARSAL or runs.card()["name"] is not None:
        return
    reason = "needs an NVIDIA GPU (tools/gpu_check.sh); IPT_GPU_REHEARSAL=1 rehearses it on a CPU"
    for item in ours:
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, write_dataset: Any) -> runs.Setting:
    return runs.make(tmp_path_factory.mktemp("gpu"), write_dataset)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Notes figures of a test, by name: they reach the step's JSON whether it passes or not."""

    def note(**found: Any) -> None:
        print(found)
        _TESTS.setdefault(request.node.name, {}).setdefault("figures", {}).update(found)

    return note


@pytest.fixture
def transformer_engine() -> None:
    """Skips a test that compares with Transformer Engine where there is none; a rehearsal stands in for it."""
    if not runs.REHEARSAL and not runs.card()["engine"]:
        pytest.skip("needs Transformer Engine: collect it with tools/gpu_wheels.sh")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if HERE in item.path.parents and (report.when == "call" or report.outcome != "passed"):
        told = _TESTS.setdefault(item.name, {})
        told |= {"outcome": report.outcome, "seconds": round(report.duration, 2)}
        if report.skipped and isinstance(report.longrepr, tuple):
            told["reason"] = report.longrepr[2]
        elif report.failed:
            told["reason"] = report.longreprtext[-2000:]
        if FIGURES:
            Path(FIGURES).write_text(json.dumps({"tests": _TESTS}, indent=1), encoding="utf-8")
    return report
