"""Every tool can be started by its name alone, and says what it is for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = sorted(path for path in (ROOT / "tools").iterdir() if path.is_file() and path.read_bytes().startswith(b"#!"))


def test_the_names_are_there() -> None:
    assert {*("pretrain.py", "preprocess_data.py", "convert_checkpoint.py", "in_image.py", "launch_slurm.sbatch")} <= {
        path.name for path in TOOLS
    }


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.name)
def test_a_tool_is_executable_in_git(tool: Path) -> None:
    assert os.access(tool, os.X_OK)
    done = subprocess.run(
        ["git", "ls-files", "--stage", str(tool)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("100755 ")
