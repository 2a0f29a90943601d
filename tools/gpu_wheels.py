"""Collects the wheels for a GPU machine without a network; tools/gpu_wheels.sh calls it.

    tools/gpu_wheels.sh OUT --torch 2.11.0 --have freeze.txt

What the extras `prep` and `train`, and tests/gpu, want beside that torch is worked out by pip's resolver, downloaded,
and laid into OUT with MANIFEST.json, a file larger than --part-size in parts.  Transformer Engine's torch part is
published as source only: it is compiled here, where nvcc and a C++ compiler are, in an environment that has the GPU
machine's torch.  That takes 5 to 10 minutes on two cores, no GPU, and 6 GB in --work.

Called again it goes on: downloaded and built wheels are kept in --work.  Standard library only.
"""

from __future__ import annotations

import argparse
import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gpu_manifest

from data_prep.errors import UserError

ROOT: Final = Path(__file__).resolve().parents[1]
TRANSFORMER_ENGINE: Final = "2.20.2"
BUILD_TOOLS: Final = ("setuptools>=77", "wheel", "pybind11", "ninja", "cmake", "packaging", "numpy")
OF_TESTS: Final = ("pytest>=8.3",)
OPTIONAL: Final = ("nvidia-cudnn-frontend",)
"""What Transformer Engine declares, but imports for kernels of Blackwell alone: 210 MB with what it needs itself."""
OF_INSTALL: Final = "setuptools>=77"
"""What installs the checkout itself there; taken along although torch wants it too, in whatever version."""


@dataclass(frozen=True, slots=True)
class Engine:
    """The Transformer Engine that goes along: `major` of CUDA names its core, `torch` is what it was built for."""

    version: str
    torch: str
    major: str
    archs: str

    @property
    def parts(self) -> list[str]:
        """Shell, CUDA core and torch part."""
        names = ("transformer-engine", f"transformer-engine-cu{self.major}", "transformer-engine-torch")
        return [f"{name}=={self.version}" for name in names]

    @property
    def folder(self) -> str:
        return f"transformer-engine-{self.version}-torch-{self.torch}-archs-{self.archs.replace(';', '-')}"


def main() -> None:
    options = _parser().parse_args()
    try:
        part_size = gpu_manifest.parse_size(options.part_size)
    except (ValueError, KeyError) as error:
        _end(UserError("--part-size", f"{options.part_size} is no size ({error})", "use 60M, say"))
    try:
        collect(options, part_size)
    except UserError as error:
        _end(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu_wheels.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for the wheels and MANIFEST.json")
    parser.add_argument("--torch", default="2.11.0", help="the GPU machine's torch")
    parser.add_argument("--part-size", default="60M", help="largest file in OUT: K, M, G are powers of 1,000")
    parser.add_argument("--transformer-engine", default=TRANSFORMER_ENGINE, metavar="VERSION", help="or none")
    parser.add_argument("--archs", default="90", help="GPU architectures to compile for: 90 is Hopper, '90;100' two")
    parser.add_argument("--have", type=Path, help="`pip freeze` of the GPU machine: what it has is not taken along")
    parser.add_argument("--work", type=Path, help="folder for the environment, downloads and builds; default OUT.work")
    return parser


def _end(error: UserError) -> None:
    sys.exit(f"error: {error}")


def collect(options: argparse.Namespace, part_size: int) -> None:
    """All of it; says at the end what the folder lacks."""
    out = options.out.absolute()
    work = (options.work or out.with_name(out.name + ".work")).absolute()
    have = pinned(options.have.read_text(encoding="utf-8")) if options.have else {}
    if have.get("torch", options.torch) != options.torch:
        raise UserError(
            options.have, f"has torch {have['torch']}, not {options.torch}", f"give --torch {have['torch']}"
        )
    for folder in (out, work / "wheels"):
        folder.mkdir(parents=True, exist_ok=True)
    python = environment(work / "env", options.torch)
    engine, lacking = None, []
    if options.transformer_engine != "none":
        major = _told(python, "import torch; print(torch.version.cuda.split('.')[0])")
        engine = Engine(options.transformer_engine, options.torch, major, options.archs)
        fault = build(engine, python, work)
        if fault:
            say(f"without Transformer Engine: {fault}")
            engine, lacking = None, [f"transformer-engine: {fault}"]
    built = sorted((work / engine.folder).glob("*.whl")) if engine else []
    requirements = [*OF_TESTS, *dict.fromkeys(need for wheel in built for need in needs(_metadata(wheel)))]
    wheels = [*built, *resolve(python, options.torch, requirements, have, work)]
    files = [gpu_manifest.place(wheel, out, part_size) for wheel in wheels]
    manifest = {
        "python": _told(python, "import sys; print('cp%d%d' % sys.version_info[:2])"),
        "torch": options.torch,
        "transformer_engine": engine and {"version": engine.version, "torch": engine.torch, "archs": engine.archs},
        "requirements": requirements,
        "without_dependencies": engine.parts if engine else [],
        "lacking": lacking,
        "files": files,
    }
    gpu_manifest.write(out, manifest)
    lying = list(gpu_manifest.lying(manifest))
    total, largest = sum(file["size"] for file in lying), max(file["size"] for file in lying)
    say(f"{len(files)} wheels in {len(lying)} files, {total / 1e6:.0f} MB, largest {largest / 1e6:.0f} MB: {out}")


def environment(folder: Path, torch: str) -> Path:
    """The interpreter of an environment with that torch and what builds Transformer Engine."""
    python = folder / "bin" / "python"
    if not python.exists():
        _run([sys.executable, "-m", "venv", "--clear", str(folder)], f"making {folder}")
    wanted = [f"torch=={torch}", *BUILD_TOOLS]
    _pip(python, ["install", *wanted], f"installing torch {torch} and build tools")
    return python


def build(engine: Engine, python: Path, work: Path) -> str | None:
    """Its three wheels in `work`/`engine.folder`, unless they lie there; why not, if they cannot be made here."""
    folder = work / engine.folder
    folder.mkdir(exist_ok=True)
    core = f"transformer-engine-cu{engine.major}=={engine.version}"
    if not list(folder.glob("transformer_engine-*.whl")) or not list(folder.glob("transformer_engine_cu*.whl")):
        shell = f"transformer-engine=={engine.version}"
        _pip(python, ["download", "--no-deps", "-d", str(folder), shell, core], f"downloading {shell} and {core}")
    if list(folder.glob("transformer_engine_torch-*.whl")):
        return None
    toolkit = cuda_home(os.environ)
    if toolkit is None:
        return f"no nvcc here; install the CUDA {engine.major} toolkit, or set CUDA_HOME to it"
    if shutil.which("c++") is None and shutil.which("g++") is None:
        return "no C++ compiler here; install g++"
    release = _told(toolkit / "bin" / "nvcc", "--version", flag=False)
    found = re.search(r"release (\d+)\.", release)
    if found is None or found[1] != engine.major:
        told = found[1] if found else "unknown"
        return f"nvcc is of CUDA {told}, torch {engine.torch} of {engine.major}; set CUDA_HOME to a toolkit of that"
    _compile(engine, python, folder, work / "source", toolkit)
    return None


def _compile(engine: Engine, python: Path, folder: Path, sources: Path, toolkit: Path) -> None:
    _pip(python, ["install", "--no-deps", *map(str, folder.glob("transformer_engine_cu*.whl"))], "installing the core")
    source = f"transformer-engine-torch=={engine.version}"
    alone = ["--no-deps", "--no-build-isolation"]
    fetch = ["download", *alone, "--no-binary", "transformer-engine-torch", "-d", str(sources), source]
    _pip(python, fetch, f"downloading the source of {source}")
    (archive,) = sources.glob(f"transformer_engine_torch-{engine.version}.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(sources, filter="data")
    packages = Path(_told(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    includes = ":".join(map(str, sorted(packages.glob("nvidia/*/include"))))
    settings = {
        "CPLUS_INCLUDE_PATH": includes,
        "C_INCLUDE_PATH": includes,
        "CUDA_HOME": str(toolkit),
        "NVTE_PYTORCH_FORCE_BUILD": "TRUE",
        "NVTE_FRAMEWORK": "pytorch",
        "NVTE_CUDA_ARCHS": engine.archs,
        "MAX_JOBS": os.environ.get("MAX_JOBS", str(os.cpu_count() or 1)),
        "PATH": f"{python.parent}:{toolkit / 'bin'}:{os.environ['PATH']}",
    }
    unpacked = sources / f"transformer_engine_torch-{engine.version}"
    what = f"building {source} for torch {engine.torch}: 5 to 10 minutes on two cores"
    _pip(python, ["wheel", *alone, "-w", str(folder), str(unpacked)], what, settings)


def cuda_home(variables: Mapping[str, str]) -> Path | None:
    """The toolkit that has nvcc and headers: CUDA_HOME's, else that of PATH, else the newest of /usr/local."""
    nvcc = shutil.which("nvcc", path=variables.get("PATH"))
    named = [Path(variables["CUDA_HOME"])] if variables.get("CUDA_HOME") else []
    on_path = [Path(nvcc).resolve().parents[1]] if nvcc else []
    for folder in [*named, *on_path, *sorted(Path("/usr/local").glob("cuda*"), reverse=True)]:
        # a wrapper named nvcc may lie in any bin; the headers that it needs lie beside the real one
        if (folder / "bin" / "nvcc").exists() and (folder / "include" / "cuda_runtime.h").exists():
            return folder
    return None


def needs(metadata: str) -> list[str]:
    """What a part of Transformer Engine wants that is neither torch, another part, an extra's nor OPTIONAL."""
    found = email.message_from_string(metadata).get_all("Requires-Dist", [])
    wanted = [need for need in found if "extra ==" not in need]
    return [
        need
        for need in wanted
        if canonical(need) not in ("torch", *OPTIONAL) and not canonical(need).startswith("transformer-engine")
    ]


def _metadata(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as content:
        (name,) = (name for name in content.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        return content.read(name).decode()


def resolve(python: Path, torch: str, requirements: Sequence[str], have: Mapping[str, str], work: Path) -> list[Path]:
    """The wheels to take along: what pip would install, less torch's own needs and what the machine has."""
    wanted = [f"torch=={torch}", f"{ROOT}[prep,train]", OF_INSTALL, *requirements]
    constraints = work / "have.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in have.items()), encoding="utf-8")
    bare = _reported(python, [f"torch=={torch}", "-c", str(constraints)], work / "of_torch.json")
    whole = _reported(python, [*wanted, "-c", str(constraints)], work / "of_all.json")
    missing = beside(whole, {name for name, _ in bare} - {canonical(OF_INSTALL)}, have)
    say(f"{len(missing)} packages beside torch {torch} and its own {len(bare) - 1}")
    cache = work / "wheels"
    absent = [f"{name}=={version}" for name, version in missing if _wheel(name, version, cache.glob("*.whl")) is None]
    if absent:
        fetch = ["wheel", "--no-deps", "-w", str(cache), *absent]
        _pip(python, fetch, f"downloading {len(absent)} wheels")
    here = sorted(cache.glob("*.whl"))
    return [wheel for name, version in sorted(missing) if (wheel := _wheel(name, version, here))]


def _reported(python: Path, arguments: Sequence[str], report: Path) -> list[tuple[str, str]]:
    """(name, version) of what pip would install into an empty environment."""
    flags = ["install", "--dry-run", "--ignore-installed", "--report", str(report)]
    _pip(python, [*flags, *arguments], f"asking pip for the needs {report.stem.replace('_', ' ')}")
    return installs(json.loads(report.read_text(encoding="utf-8")))


def installs(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(canonical name, version) of each package of pip's report, but for the checkout itself."""
    return [
        (canonical(item["metadata"]["name"]), item["metadata"]["version"])
        for item in report["install"]
        if "dir_info" not in item["download_info"]
    ]


def beside(whole: Iterable[tuple[str, str]], there: set[str], have: Mapping[str, str]) -> list[tuple[str, str]]:
    """What of `whole` is neither in `there` nor, in this version, in `have`."""
    return [(name, version) for name, version in whole if name not in there and have.get(name) != version]


def canonical(requirement: str) -> str:
    """The registry's spelling of a requirement's name."""
    name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(freeze: str) -> dict[str, str]:
    """name -> version of the lines `name==version` of `pip freeze`, without a build's local part (`+cu130`)."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;+]+)", freeze, flags=re.MULTILINE)
    return {canonical(name): version for name, version in found}


def _wheel(name: str, version: str, wheels: Iterable[Path]) -> Path | None:
    for wheel in wheels:
        its_name, its_version = wheel.name.split("-")[:2]
        if canonical(its_name) == name and its_version == version:
            return wheel
    return None


def _pip(python: Path, arguments: Sequence[str], what: str, settings: Mapping[str, str] | None = None) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    _run(command, what, settings)


def _run(command: Sequence[str], what: str, settings: Mapping[str, str] | None = None) -> None:
    say(what)
    done = subprocess.run(
        command, env={**os.environ, **(settings or {})}, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        log = (done.stdout + done.stderr).strip().splitlines()
        sys.stderr.write("\n".join(log[-200:]) + "\n")
        faults = (
            [line for line in log if re.search(r"(fatal error|error|ERROR): (?!subprocess)", line)]
            or log[-1:]
            or ["no word"]
        )
        raise UserError(what, faults[0].strip(), "its output is above; called again, this goes on from here")


def _told(program: Path, argument: str, *, flag: bool = True) -> str:
    """What an interpreter prints for code, or another program for one argument."""
    command = [str(program), *(["-c"] if flag else []), argument]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
