"""A rank that fails where the others wait for it in a collective: one line, and none waits for half an hour."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import environment

WORKER = Path(__file__).with_name("together_worker.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    """What each of two ranks heard, and torchrun's log."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(WORKER)]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 1
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)], done.stderr


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("nothing", "as it should be"),
        ("one_after", "of rank 1"),
        ("first", "of rank 1"),  # the cause, where others fail after it
        ("slow", "as it should be"),  # longer than a fault would be waited for
    ],
)
def test_a_fault_is_the_same_line_on_all_that_come_out(
    found: tuple[list[dict[str, Any]], str], fault: str, line: str
) -> None:
    assert [row[fault] for row in found[0]] == [line, line]


def test_a_rank_that_fails_in_front_of_a_collective_leaves_and_the_other_is_ended(
    found: tuple[list[dict[str, Any]], str],
) -> None:
    first, second = found[0]
    assert first["in_front"] == "of rank 0" and 2.0 <= first["seconds"] < 10.0
    assert "in_front" not in second
    assert "another rank failed (of rank 0) and this one waits for it: it ends" in found[1]


def test_ranks_find_out_without_a_collective_whether_all_are_there(found: tuple[list[dict[str, Any]], str]) -> None:
    assert [row["all_come"] for row in found[0]] == [True, True]
    assert found[0][0]["too_late"] is False
