"""tools/gpu_check.sh: what it refuses, what it runs again, and that its tests run, on a CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forks import warm_python

from data_prep.errors import UserError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import gpu_machine  # noqa: E402
import gpu_manifest  # noqa: E402
import gpu_steps  # noqa: E402
from training_cases import CASES  # noqa: E402

TOOL = ROOT / "tools" / "gpu_check.sh"
HERE = "cp{}{}".format(*sys.version_info[:2])
ENGINE = {"version": "2.20.2", "torch": "2.11.0", "archs": "90"}


def machine(**changed: Any) -> gpu_machine.Machine:
    values = {"python": "cp312", "torch": "2.11.0+cu130", "cuda": "13.0", "cards": 1, "card": "NVIDIA H200"}
    return gpu_machine.Machine(**{**values, **changed})


def wheels(folder: Path, python: str = HERE) -> Path:
    """A folder without a wheel, for this Python."""
    folder.mkdir()
    manifest = {"python": python, "torch": "x", "transformer_engine": None, "requirements": []}
    gpu_manifest.write(folder, {**manifest, "without_dependencies": [], "lacking": [], "files": []})
    return folder


def tool(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOL, *map(str, arguments)],
        env={**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_wheels_of_another_python_are_refused_in_a_line(tmp_path: Path) -> None:
    done = tool(wheels(tmp_path / "wheels", "cp311"), tmp_path / "out")
    mend = "run it with PYTHON=python3.11, or collect again there with PYTHON=python3.12"
    assert done.stderr == f"error: {tmp_path}/wheels: the wheels are for Python 3.11, this is 3.12; {mend}\n"
    assert done.returncode == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["gpu_check.sh", "gpu_wheels.sh"])
def test_a_python_that_is_too_old_is_told_before_anything_is_imported(name: str, tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\necho 3.10\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    done = subprocess.run(
        [ROOT / "tools" / name, "--help"],
        env={**os.environ, "PYTHON": str(old)},
        capture_output=True,
        text=True,
        check=False,
    )
    mend = "this project needs 3.12; name another: PYTHON=python3.12"
    assert (done.returncode, done.stderr) == (1, f"error: {old}: is Python 3.10, {mend}\n")


def test_without_a_gpu_it_says_so_in_a_line(tmp_path: Path) -> None:
    done = tool(wheels(tmp_path / "wheels"), tmp_path / "out")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: GPU: torch ") and line.endswith("rehearse on the CPU: --rehearse")
    assert done.returncode == 1 and not (tmp_path / "out").exists()


def test_a_dry_run_says_what_is_left_and_that_it_is_a_rehearsal(tmp_path: Path) -> None:
    folder, out = wheels(tmp_path / "wheels"), tmp_path / "out"
    out.mkdir()
    collected = gpu_manifest.sha256(folder / "MANIFEST.json")
    row = {"status": "passed", "rehearsal": True, "wheels": collected}
    (out / "parity.json").write_text(json.dumps(row), encoding="utf-8")
    done = tool(folder, out, "graphs", "--rehearse", "--dry-run", "parity")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("A REHEARSAL ON THE CPU")
    assert done.stdout.splitlines()[2:] == ["install: to do", "parity: done", "graphs: to do"]


def test_a_step_that_is_none_is_told_with_the_nearest(tmp_path: Path) -> None:
    done = tool(wheels(tmp_path / "wheels"), tmp_path / "out", "graph")
    assert done.stderr == "error: graph: is no step; did you mean 'graphs'?\n"


@pytest.mark.parametrize(
    ("changed", "engine", "told"),
    [
        ({"torch": None}, None, "torch: is not installed for this interpreter; name the one that has it: PYTHON=..."),
        (
            {"torch": "2.13.0"},
            ENGINE,
            "torch: 2.13.0 is here, Transformer Engine was built for 2.11.0; tools/gpu_wheels",
        ),
        ({"torch": "2.13.0"}, None, None),
        ({}, ENGINE, None),
    ],
)
def test_another_torch_than_transformer_engine_was_built_for(
    changed: dict[str, Any], engine: dict[str, str] | None, told: str | None
) -> None:
    if told is None:
        gpu_machine.check_torch(machine(**changed), {"transformer_engine": engine})
        return
    with pytest.raises(UserError) as error:
        gpu_machine.check_torch(machine(**changed), {"transformer_engine": engine})
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("row", "done"),
    [
        (None, False),
        ({"status": "passed", "rehearsal": False, "wheels": "w"}, True),
        ({"status": "skipped", "rehearsal": False, "wheels": "w"}, True),
        ({"status": "failed", "rehearsal": False, "wheels": "w"}, False),
        ({"status": "cut", "rehearsal": False, "wheels": "w"}, False),
        ({"status": "running", "rehearsal": False, "wheels": "w"}, False),
        ({"status": "passed", "rehearsal": True, "wheels": "w"}, False),
        ({"status": "passed", "rehearsal": False, "wheels": "others"}, False),
    ],
)
def test_only_what_ended_well_with_these_wheels_is_not_run_again(row: dict[str, Any] | None, done: bool) -> None:
    assert gpu_steps.is_done(row, rehearsal=False, wheels="w") is done


def test_what_a_file_of_tests_comes_to() -> None:
    passed, skipped = {"outcome": "passed"}, {"outcome": "skipped"}
    assert gpu_steps.status_of_tests(0, {"a": passed, "b": skipped}) == "passed"
    assert gpu_steps.status_of_tests(0, {"b": skipped}) == "skipped"
    assert gpu_steps.status_of_tests(1, {"a": passed}) == "failed"
    assert gpu_steps.status_of_tests(0, {}) == "failed"
    assert gpu_steps.status_of_tests(124, {"a": passed}) == "cut"


def test_every_file_of_tests_is_a_step_of_less_than_nine_minutes() -> None:
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "gpu").glob("test_*.py")}
    assert {step.tests for step in gpu_steps.STEPS if step.tests} == files
    assert all(step.expected <= gpu_steps.LIMIT for step in gpu_steps.STEPS)


def test_every_recipe_of_fp8_is_of_one_step() -> None:
    text = (ROOT / "tests" / "gpu" / "test_fp8.py").read_text(encoding="utf-8")
    names = re.findall(r'^    "(.+)": \("', text, flags=re.MULTILINE)
    selects = [step.select for step in gpu_steps.STEPS if step.select]
    assert len(names) > 8 and {name.split(",")[0].split()[0] for name in names} == set(selects)
    assert all(sum(select in name for select in selects) == 1 for name in names)


@pytest.mark.parametrize(
    ("code", "turns", "status"),
    [(0, 3, "passed"), (124, 3, "passed"), (0, 2, "cut"), (124, 0, "cut"), (1, 7, "failed")],
)
def test_a_measurement_of_speed_needs_three_turns(code: int, turns: int, status: str) -> None:
    figures = {"cases": {"8b-fp8": {"turns": [{}] * turns}}}
    assert gpu_steps.status_of_speed(code, "8b-fp8", figures) == status
    assert gpu_steps.status_of_speed(0, "8b-fp8", {}) == "cut"


def gpu_tests(tmp_path: Path, python: str, *chosen: str, rehearsal: bool = True) -> tuple[dict[str, Any], str]:
    """What tests/gpu came to, by the name of a test, and what pytest said."""
    figures = tmp_path / "figures.json"
    variables = {"IPT_GPU_FIGURES": str(figures), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-m", "pytest", "-p", "no:cacheprovider", "-q", *chosen],
        env={**os.environ, **variables, **({"IPT_GPU_REHEARSAL": "1"} if rehearsal else {})},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8"))["tests"]
    return found, done.stdout


def test_without_a_gpu_the_tests_are_skipped_with_the_reason(tmp_path: Path) -> None:
    found, said = gpu_tests(tmp_path, sys.executable, "tests/gpu", rehearsal=False)
    assert len(found) > 25 and {test["outcome"] for test in found.values()} == {"skipped"}
    assert "needs an NVIDIA GPU (tools/gpu_check.sh); IPT_GPU_REHEARSAL=1 rehearses it on a CPU" in said


def test_a_short_rehearsal_passes_and_leaves_figures(tmp_path: Path) -> None:
    chosen = "test_fp8.py::test_the_loss_stays_within_two_per_cent_of_bf16[delayed hybrid]"
    found, _ = gpu_tests(tmp_path, warm_python(), f"tests/gpu/{chosen}")
    (test,) = found.values()
    assert test["outcome"] == "passed"
    assert 0 < abs(test["figures"]["off"]) < 0.02 and len(test["figures"]["loss"]) == 12


@pytest.mark.long
def test_a_call_installs_runs_a_step_and_leaves_it_at_that(tmp_path: Path) -> None:
    """From a folder without a wheel: this environment has all that the checkout needs."""
    folder, out = wheels(tmp_path / "wheels"), tmp_path / "out"
    early = tool(folder, out, "doctor", "--rehearse", "--seconds", "5")
    assert early.returncode == 3 and "left for another call: doctor" in early.stdout, early.stdout + early.stderr
    done = tool(folder, out, "doctor", "--rehearse")
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads((out / "summary.json").read_text(encoding="utf-8"))["steps"]
    assert {name: (row["status"], row["rehearsal"]) for name, row in steps.items()} == {
        "install": ("passed", True),
        "doctor": ("passed", True),
    }
    assert steps["doctor"]["versions"]["megatron-core"] and steps["doctor"]["figures"]["tests"]
    left = {path.name: path.read_bytes() for path in out.iterdir()}
    assert tool(folder, out, "doctor", "--rehearse").returncode == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == left


@pytest.mark.long
def test_the_whole_rehearsal_passes(tmp_path: Path) -> None:
    found, _ = gpu_tests(tmp_path, "tests/gpu")
    assert {test["outcome"] for test in found.values()} == {"passed"}
    assert all(test["figures"] for test in found.values())


def test_steps_of_speed_are_cases_of_the_benchmark() -> None:
    asked = {step.case for step in gpu_steps.STEPS if step.case}
    assert asked and asked <= {name for name, case in CASES.items() if case.gpu}
