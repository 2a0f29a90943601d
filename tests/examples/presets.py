"""What the tests of the presets share: plans, a table's cells, comments of the environment, what a script starts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from forks import forked_python
from torch.distributed.run import get_args_parser

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


def check_environment(path: Path, least: int = 5) -> None:
    """Every variable, of `least` many, stands on a line of its own behind a comment that explains it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    exported = [index for index, line in enumerate(lines) if line.startswith("export ")]
    assert len(exported) >= least
    for index in exported:
        assert re.fullmatch(r"export [A-Z_0-9]+=\S+", lines[index])
        assert lines[index - 1].startswith("# ") and len(lines[index - 1]) > 30, lines[index]


def plans_of(recipes: Mapping[str, tuple[Path, int, Sequence[str]]]) -> dict[str, Any]:
    """The plan of each (recipe, world size, overrides), as JSON: its ranks are built on the meta device."""
    given = {name: (str(path), world, list(overrides)) for name, (path, world, overrides) in recipes.items()}
    found: dict[str, Any] = forked_python(f"""
import json
from dataclasses import asdict
from pathlib import Path
from megatron_ipt.architecture import with_settings
from megatron_ipt.plan.layout import plan_layout
from megatron_ipt.recipe import load_recipe

def plan(path, world, overrides):
    recipe = load_recipe(Path(path), overrides)
    return asdict(plan_layout(with_settings(None, recipe.model), recipe.model, recipe.train, world))

print(json.dumps({{name: plan(*job) for name, job in {given!r}.items()}}))
""")
    return found


def check_by_hand(example: Path, nodes: int) -> str:
    """The readme's lines to start on every node are whole; gives torchrun's seconds to end its workers in."""
    readme = (example / "README.md").read_text(encoding="utf-8")
    lines = readme.replace("\\\n", " ").splitlines()
    (line,) = [line.split() for line in lines if line.strip().startswith("torchrun ")]
    parsed = get_args_parser().parse_args(line[1:])
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.rdzv_backend) == (str(nodes), "8", "c10d")
    assert parsed.module and parsed.training_script == "megatron_ipt.pretrain"
    option, recipe = parsed.training_script_args
    assert option == "--recipe" and ROOT / recipe == example / "recipe.yaml"
    assert f"source {(example / 'environment.sh').relative_to(ROOT)}\n" in readme
    (limit,) = re.findall(r"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)\n", readme)
    return str(limit)


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
