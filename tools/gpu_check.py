"""Checks this project on a machine with one NVIDIA GPU and no network; tools/gpu_check.sh calls it.

    tools/gpu_check.sh WHEELS OUT                  everything that is left to do
    tools/gpu_check.sh WHEELS OUT graphs parity    these steps
    tools/gpu_check.sh --list                      the steps

WHEELS is what tools/gpu_wheels.sh made.  An environment is made in --work on top of the interpreter's own packages, so
that the machine's torch stays, and the checkout is installed into it from WHEELS alone.  Each step leaves
OUT/STEP.json (status, seconds, versions, the card's name, figures) and OUT/STEP.log and is ended after 9 minutes;
OUT/summary.json has all of them.  A step that passed is not run again, one that failed or was cut is.  With --seconds a
call begins no step that is not expected to end in time: call it again for the rest.

Exit code 0: nothing failed; 1: a step failed or was cut, or the folder does not fit the machine; 3: steps are left.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import site
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import gpu_machine
import gpu_manifest
import gpu_steps
from gpu_steps import LIMIT, STEPS, Step

from data_prep.errors import UserError

ROOT: Final = Path(__file__).resolve().parents[1]
TAIL: Final = 30
"""Lines of a log that a failed step's JSON has."""
LEFT: Final = 3
_PACKAGES: Final = ("torch", "megatron-core", "transformer-engine", "transformers", "numpy")


def main() -> None:
    options = _parser().parse_intermixed_args()
    if options.list:
        for step in STEPS:
            say(f"{step.name:20} {step.shows}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: ended from outside; called again, it goes on"))
    try:
        sys.exit(check(options))
    except UserError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu_check.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheels", type=Path, nargs="?", default=Path("wheels"), help="folder that gpu_wheels.sh made")
    parser.add_argument("out", type=Path, nargs="?", default=Path("gpu_check"), help="folder for JSON and logs")
    parser.add_argument("steps", nargs="*", metavar="STEP", help="these steps; default all")
    parser.add_argument("--work", type=Path, help="folder for the environment and what tests write; default OUT.work")
    parser.add_argument("--bare", type=Path, help="folder of the bare loop that speed is measured against")
    parser.add_argument("--seconds", type=float, help="begin no step that is not expected to end by then")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, stand-ins for what needs a GPU")
    parser.add_argument("--dry-run", action="store_true", help="check folder and machine, say what would be run")
    parser.add_argument("--list", action="store_true", help="print the steps")
    return parser


class Check:
    """One call: the folders, the machine, and what every step's JSON says."""

    def __init__(self, options: argparse.Namespace, manifest: Mapping[str, Any], machine: gpu_machine.Machine) -> None:
        self.out: Path = options.out.absolute()
        self.work: Path = (options.work or options.out.with_name(options.out.name + ".work")).absolute()
        self.wheels: Path = options.wheels.absolute()
        self.bare: Path | None = options.bare and options.bare.absolute()
        self.rehearsal: bool = options.rehearse
        self.manifest, self.machine = manifest, machine
        self.python = self.work / "venv" / "bin" / "python"
        self.collected = gpu_manifest.sha256(self.wheels / gpu_manifest.MANIFEST)
        self.versions: dict[str, Any] = {}

    def row(self, name: str) -> dict[str, Any] | None:
        """What an earlier call, or this one, left of a step."""
        path = self.out / f"{name}.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return found

    def is_done(self, name: str) -> bool:
        return gpu_steps.is_done(self.row(name), self.rehearsal, self.collected)

    def note(self, name: str, status: str, **more: Any) -> dict[str, Any]:
        """Write OUT/`name`.json at once, and OUT/summary.json."""
        row = {
            "step": name,
            "status": status,
            "rehearsal": self.rehearsal,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": self.machine.to_json(),
            "versions": self.versions,
            "wheels": self.collected,
            **more,
        }
        _write(self.out / f"{name}.json", row)
        rows = {each: found for each in ("install", *gpu_steps.NAMES) if (found := self.row(each))}
        _write(self.out / "summary.json", {"rehearsal": self.rehearsal, "steps": rows})
        return row


def check(options: argparse.Namespace) -> int:
    """The exit code."""
    began = time.monotonic()
    steps = gpu_steps.chosen(options.steps)
    manifest = gpu_manifest.read(options.wheels)
    machine = gpu_machine.here()
    gpu_machine.check_python(machine, manifest, options.wheels)
    gpu_manifest.check_files(options.wheels, manifest)
    gpu_machine.check_torch(machine, manifest)
    gpu_machine.check_card(machine, rehearsal=options.rehearse)
    run = Check(options, manifest, machine)
    _announce(run)
    if options.dry_run:
        for name in ("install", *(step.name for step in steps)):
            say(f"{name}: {'done' if run.is_done(name) else 'to do'}")
        return 0
    run.out.mkdir(parents=True, exist_ok=True)
    install(run)
    left = []
    for step in steps:
        if run.is_done(step.name):
            continue
        room = LIMIT if options.seconds is None else options.seconds - (time.monotonic() - began)
        if room < min(step.expected, LIMIT):
            left.append(step.name)
            continue
        perform(run, step, min(LIMIT, room))
    rows = {step.name: row for step in STEPS if (row := run.row(step.name)) is not None}
    say("\n".join(gpu_steps.table(rows)))
    if left:
        say(f"left for another call: {' '.join(left)}")
    asked = [rows[step.name]["status"] for step in steps if step.name in rows and step.name not in left]
    if any(status not in ("passed", "skipped") for status in asked):
        return 1
    return LEFT if left else 0


def _announce(run: Check) -> None:
    say(f"{run.machine.card or 'no GPU'}; torch {run.machine.torch}, driver {run.machine.driver or 'unknown'}")
    if run.rehearsal:
        say("A REHEARSAL ON THE CPU: local layers and emulated FP8 stand in; nothing here is a result of a GPU")
    for line in run.manifest["lacking"]:
        say(f"the folder lacks {line}; what needs it is skipped")


def install(run: Check) -> None:
    """The environment, from WHEELS alone, once; UserError where it cannot be made."""
    if run.python.exists() and run.is_done("install"):
        run.versions = (run.row("install") or {})["versions"]
        return
    began = time.monotonic()
    run.note("install", "running")
    joined = run.work / "joined"
    gpu_manifest.join(run.wheels, run.manifest, joined)
    venv = run.work / "venv"
    _logged(run, "install", [sys.executable, "-m", "venv", "--clear", "--without-pip", str(venv)], LIMIT)
    _share_packages(run.python)
    pip = [sys.executable, "-m", "pip", "--python", str(run.python), "--disable-pip-version-check", "install"]
    offline = [*pip, "--no-index", "--no-build-isolation"]
    offline += ["--find-links", str(run.wheels), "--find-links", str(joined)]
    ours = ["-e", f"{ROOT}[prep,train]", *run.manifest["requirements"]]
    alone = run.manifest["without_dependencies"]
    for wanted in (["setuptools>=77"], ours, *([["--no-deps", *alone]] if alone else [])):
        code = _logged(run, "install", [*offline, *wanted], LIMIT, append=True)
        if code:
            tail = _tail(run.out / "install.log")
            run.note("install", "failed", tail=tail)
            faults = [line for line in tail if "ERROR" in line] or tail[-1:] or ["no word"]
            raise UserError(run.out / "install.log", faults[0].strip(), "collect the wheels again, with what it lacks")
    _share_libraries(run.python)
    run.versions = _versions(run.python)
    run.note("install", "passed", seconds=round(time.monotonic() - began, 1))


def _share_packages(python: Path) -> None:
    """Let the environment see the packages of this interpreter, which may be an environment itself.

    `venv --system-site-packages` would show those of the interpreter below it.
    """
    (_packages(python) / "machine.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")


def _share_libraries(python: Path) -> None:
    """Links to torch's CUDA libraries: Transformer Engine looks for `nvidia/` in its own environment alone."""
    own = _packages(python) / "nvidia"
    own.mkdir(exist_ok=True)
    for packages in map(Path, site.getsitepackages()):
        for library in packages.glob("nvidia/*"):
            if library.is_dir() and not (own / library.name).exists():
                (own / library.name).symlink_to(library)


def _packages(python: Path) -> Path:
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())


def _versions(python: Path) -> dict[str, str | None]:
    code = "import json, sys, importlib.metadata as m\n"
    code += "here = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}\n"
    code += "print(json.dumps({name: here.get(name) for name in sys.argv[1:]}))"
    told = subprocess.run([str(python), "-c", code, *_PACKAGES], capture_output=True, text=True, check=True)
    found: dict[str, str | None] = json.loads(told.stdout)
    return found


def perform(run: Check, step: Step, limit: float) -> None:
    """Run a step to its end or its limit, and write what it told."""
    say(f"{step.name}: {step.shows}")
    began = time.monotonic()
    run.note(step.name, "running")
    figures = run.work / f"{step.name}.figures.json"
    if step.tests:
        figures.unlink(missing_ok=True)
    code = _logged(run, step.name, command(run, step, figures), limit, IPT_GPU_FIGURES=str(figures))
    found = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
    status = _status(run, step, code, found)
    tail = {} if status in ("passed", "skipped") else {"tail": _tail(run.out / f"{step.name}.log")}
    seconds = round(time.monotonic() - began, 1)
    run.note(step.name, status, seconds=seconds, exit_code=code, figures=found, **tail)
    say(f"{step.name}: {status}, {seconds:.0f} s")


def command(run: Check, step: Step, figures: Path) -> list[str]:
    """What a step starts; in a rehearsal the benchmark builds its case only: a CPU's speed shows nothing."""
    if step.tests:
        base = run.work / "tests" / step.name
        base.parent.mkdir(parents=True, exist_ok=True)
        pytest = [str(run.python), "-m", "pytest", "-p", "no:cacheprovider", "--basetemp", str(base), step.tests]
        return [*pytest, "-k", step.select] if step.select else pytest
    benchmark = [str(run.python), "benchmarks/training.py"]
    if run.rehearsal:
        return [*benchmark, "--dry-run", step.case]
    bare = ["--bare", str(run.bare)] if run.bare else []
    work = ["--work", str(run.work / step.name), "--out", str(figures), "--seconds", str(gpu_steps.SPEED_SECONDS)]
    return [*benchmark, "--case", step.case, *bare, *work]


def _status(run: Check, step: Step, code: int, found: Mapping[str, Any]) -> str:
    if step.tests:
        return gpu_steps.status_of_tests(code, found.get("tests", {}))
    if run.rehearsal:
        return "failed" if code else "passed"
    return gpu_steps.status_of_speed(code, step.case, found)


def _logged(run: Check, name: str, words: Sequence[str], limit: float, *, append: bool = False, **more: str) -> int:
    """The exit code of a command under `timeout`, 124 where it was ended; what it writes goes to OUT/`name`.log."""
    rehearsal = {"IPT_GPU_REHEARSAL": "1"} if run.rehearsal else {}
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", **rehearsal, **more}
    guarded = ["timeout", "--kill-after=10", str(round(limit)), *words]
    with (run.out / f"{name}.log").open("ab" if append else "wb") as log:
        process = subprocess.Popen(guarded, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
        try:
            code = process.wait()
        finally:
            process.terminate()
    return 124 if code in (124, 137, -9) else code


def _tail(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
