"""What the tests of the presets share: a table's cells, the environment's comments, a script's call of sbatch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Submitted(NamedTuple):
    """What a launch script gave sbatch."""

    options: set[str]
    script: Path
    recipe: Path
    overrides: list[str]
    environment: dict[str, str]


def cells(line: str) -> list[str]:
    """The cells of a row of a table, of Markdown or of rich."""
    return [cell.strip() for cell in line.strip().strip("|│").replace("│", "|").split("|")]


def check_environment(path: Path) -> None:
    """Every variable stands on a line of its own behind a comment that explains it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    exported = [index for index, line in enumerate(lines) if line.startswith("export ")]
    assert len(exported) >= 5
    for index in exported:
        assert re.fullmatch(r"export [A-Z_0-9]+=\S+", lines[index])
        assert lines[index - 1].startswith("# ") and len(lines[index - 1]) > 30, lines[index]


def submitted(launch: Path, folder: Path, *overrides: str, **variables: str) -> Submitted:
    """Run `launch` in `folder` with a stand-in for sbatch that tells how it was called."""
    told = folder / "told.json"
    stand_in = folder / "sbatch"
    stand_in.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"json.dump([sys.argv[1:], dict(os.environ), os.getcwd()], open({str(told)!r}, 'w'))\n"
    )
    stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **variables}
    subprocess.run([launch, *overrides], env=environment, cwd=folder, check=True)
    arguments, given, at = json.loads(told.read_text(encoding="utf-8"))
    first = next(index for index, argument in enumerate(arguments) if not argument.startswith("-"))
    script, recipe, *rest = arguments[first:]
    return Submitted(set(arguments[:first]), Path(at, script), Path(at, recipe), rest, given)
