"""The three demonstrations run, their counts are what the architecture says, and their page is what they print."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from forks import environment, warm_python

EXAMPLE = Path(__file__).parents[2] / "examples" / "either_half"
NAMES = ("weights", "rewritten", "literal")


@pytest.fixture(scope="module")
def printed() -> Mapping[str, str]:
    """What each command prints; all three at once, and one of them as a user starts it."""
    started = {
        name: subprocess.Popen(
            [warm_python() if name != NAMES[0] else sys.executable, EXAMPLE / f"{name}.py"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for name in NAMES
    }
    found = {}
    for name, process in started.items():
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        found[name] = out.strip()
    return found


def cells(printed: str) -> dict[str, tuple[str, str]]:
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in printed.splitlines()]
    return {row[0]: (row[1], row[2]) for row in rows[2:]}


def test_weights_that_change_replay_20_and_skip_20_of_theirs_and_none_of_ours(printed: Mapping[str, str]) -> None:
    """By hand: 200 samples drew 100 of each; a 6 : 4 blend of 200 has 120 and 80, so it goes on 20 too far, 20 too
    near."""
    found = cells(printed["weights"])
    assert found == {
        "samples after the change that were drawn before it": ("20", "0"),
        "samples passed over": ("20", "0"),
    }


def test_data_written_again_meets_their_stale_index_and_our_refusal(printed: Mapping[str, str]) -> None:
    found = cells(printed["rewritten"])
    theirs, ours = found["the second start"]
    assert theirs == "goes on, with 0 warnings"
    assert "domain: the dataset was written again after the blend was planned" in ours
    assert found["documents that its index knows"][0] == "100"
    assert found["the same, after its cache was deleted"][0] == found["documents in the dataset"][0] == "200"


def test_a_mentioned_token_ends_their_documents_and_not_ours(printed: Mapping[str, str]) -> None:
    """100 texts with 125 mentions: 225 ends for who takes them for the token."""
    found = cells(printed["literal"])
    assert found["documents in the .idx"] == ("100", "100")
    assert found["end-of-document tokens in the .bin"] == ("225", "100")
    assert found["documents as a trainer sees them, positions starting at 0"] == ("225", "100")


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_what_the_command_prints(printed: Mapping[str, str], name: str) -> None:
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert printed[name] in readme
    assert f"python examples/either_half/{name}.py" in readme
