"""The Dockerfile, and its install lines in an environment that holds stand-ins of an NGC image's own builds.

No container engine is needed: the lines that call tools/in_image.py run as they stand, in a fresh virtual environment
for the image's Python.  The registry is a folder of small wheels with traps in it (newer torch, triton, Transformer
Engine, and the project that is named apex there); the long test asks the real one what it would fetch.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
NGC_TORCH = "2.13.0a0+nv"
IMAGE = {"torch": NGC_TORCH, "transformer_engine": "2.9.0+70f53666", "apex": "0.1", "triton": "3.5.0"}
FOREIGN = {"torch", "apex", "triton", "transformer-engine", "flash-attn"}


def instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments) in the Dockerfile's order, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1].strip()) for line in lines if line.strip()]


def arguments_of(instruction: str) -> list[str]:
    return [rest for name, rest in instructions() if name == instruction]


INSTALLS = [rest for rest in arguments_of("RUN") if "tools/in_image.py" in rest]


def build_arguments() -> dict[str, str]:
    return dict(rest.split("=", 1) for rest in arguments_of("ARG") if "=" in rest)


def labels() -> dict[str, str]:
    pairs = [word.split("=", 1) for rest in arguments_of("LABEL") for word in shlex.split(rest)]
    return {name: re.sub(r"\$\{(\w+)\}", lambda found: build_arguments()[found[1]], value) for name, value in pairs}


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def copied() -> Iterator[tuple[list[str], str]]:
    for rest in arguments_of("COPY"):
        *sources, target = rest.split()
        yield sources, target


def test_the_image_is_an_argument() -> None:
    assert instructions()[:2] == [("ARG", "NGC_TAG=26.05-py3"), ("FROM", "nvcr.io/nvidia/pytorch:${NGC_TAG}")]


def test_every_copied_source_is_in_git_and_reaches_the_build() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    for source in (source for sources, _ in copied() for source in sources):
        assert any(name == source or name.startswith(f"{source}/") for name in tracked()), source
        assert any(source == name or source.startswith(f"{name}/") for name in let_in), source
    for name in let_in:
        assert any(fnmatch(source, name) for sources, _ in copied() for source in sources), f"{name} is never copied"


def test_who_runs_it_is_not_root() -> None:
    assert arguments_of("USER")[-1] == "ipt"
    (made,) = [rest for rest in arguments_of("RUN") if "useradd" in rest]
    assert '--uid "${USER_ID}" ipt' in made
    assert build_arguments()["USER_ID"] != "0"
    assert not arguments_of("ENTRYPOINT"), "the image's own entry point stays"


def test_health_is_what_the_doctor_says() -> None:
    (check,) = arguments_of("HEALTHCHECK")
    assert json.loads(check.split("CMD", 1)[1]) == ["ipt", "doctor"]


def test_labels_name_versions() -> None:
    found = labels()
    assert found["org.opencontainers.image.base.name"] == "nvcr.io/nvidia/pytorch:26.05-py3"
    assert found["org.opencontainers.image.version"] == setup_arguments()["version"]
    pinned = re.search(r"^megatron-core==(.+)$", (ROOT / "constraints-cpu.txt").read_text(encoding="utf-8"), re.M)
    assert pinned and found["instruction-pretraining.megatron-core.version"] == pinned[1]
    assert "${" not in "".join(found.values())


def setup_arguments() -> dict[str, Any]:
    """What setup.py gives to setuptools."""
    setuptools = pytest.importorskip("setuptools")
    given: dict[str, Any] = {}
    original, setuptools.setup = setuptools.setup, lambda **arguments: given.update(arguments)
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        setuptools.setup = original
    return given


def write_wheel(
    folder: Path, name: str, version: str, files: Mapping[str, bytes], requires: Iterable[str] = ()
) -> Path:
    """A wheel of pure Python."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    content = {
        **files,
        f"{info}/METADATA": "\n".join(metadata).encode() + b"\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = folder / f"{info.removesuffix('.dist-info')}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        rows = []
        for target, data in content.items():
            archive.writestr(target, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{target},sha256={digest},{len(data)}\n")
        archive.writestr(f"{info}/RECORD", "".join(rows) + f"{info}/RECORD,,\n")
    return path


def stand_in(folder: Path, name: str, version: str, requires: Iterable[str] = (), module: str = "") -> Path:
    module = module or name.replace("-", "_")
    return write_wheel(
        folder, name, version, {f"{module}/__init__.py": f"__version__ = {version!r}\n".encode()}, requires
    )


def setuptools_wheel(folder: Path) -> None:
    """The installed setuptools as a wheel, for pip's build environments."""
    found = distribution("setuptools")
    wanted = [file for file in found.files or () if file.suffix != ".pyc" and ".." not in file.parts]
    files = {str(file): Path(str(file.locate())).read_bytes() for file in wanted if ".dist-info" not in str(file)}
    info = f"setuptools-{found.version}.dist-info"
    files[f"{info}/entry_points.txt"] = (found.read_text("entry_points.txt") or "").encode()
    write_wheel(folder, "setuptools", found.version, files)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything setup.py asks for as stand-ins, and traps that a careless install would take."""
    folder = tmp_path_factory.mktemp("registry")
    setuptools_wheel(folder)
    given = setup_arguments()
    wanted = [
        *given["install_requires"],
        *(line for e in given["extras_require"] for line in given["extras_require"][e]),
    ]
    for name in {Requirement(line).name for line in wanted} - FOREIGN:
        requires = {"megatron-core": ["torch>=2.6.0", "numpy"], "accelerate": ["torch>=2.0.0"]}.get(name, [])
        version = build_arguments()["MEGATRON_CORE_VERSION"] if name == "megatron-core" else "9999.0"
        stand_in(folder, name, version, requires)
    stand_in(folder, "torch", "9999.0", ["triton==9999.0"])
    for name in FOREIGN - {"torch"}:
        stand_in(folder, name, "9999.0")
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing but pip in it."""
    folder = tmp_path_factory.mktemp("python") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder


class Image:
    """A container's file system: its Python, and the folder that the Dockerfile works in."""

    def __init__(self, folder: Path, python: Path, registry: Path | None, builds: Mapping[str, str]) -> None:
        self.folder, self.venv, self.registry = folder, folder / "venv", registry
        shutil.copytree(python, self.venv, symlinks=True)
        (folder / "work").mkdir()
        modules = {"pytorch-triton": "triton"}
        wheels = [stand_in(folder / "own", name, found, module=modules.get(name, "")) for name, found in builds.items()]
        if wheels:
            self.pip("install", "--no-index", *wheels)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        found = {**kept, **build_arguments(), "PATH": f"{self.venv / 'bin'}:{os.environ['PATH']}"}
        if self.registry:
            found |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.registry)}
        # the image's own file: more than ours holds, and in the way of what setup.py asks for
        (self.folder / "nvidia.txt").write_text("numpy==1.0\nsetuptools==1.0\n", encoding="utf-8")
        return {**found, "PIP_CONSTRAINT": str(self.folder / "nvidia.txt"), **more}

    def pip(self, *arguments: object) -> str:
        command = [str(self.venv / "bin" / "python"), "-m", "pip", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | {"PIP_REPORT": ""}
        ).stdout

    def build(self, stop_before: int = 99, resolve_only: bool = False) -> list[subprocess.CompletedProcess[str]]:
        """The Dockerfile's COPY lines, and the RUN lines that install, in order, until one fails."""
        done: list[subprocess.CompletedProcess[str]] = []
        for instruction, rest in instructions():
            if instruction == "COPY":
                self.copy(*rest.split())
            elif rest in INSTALLS and len(done) < stop_before:
                line = f"{rest} --dry-run" if resolve_only and done else rest
                done.append(self.run(line, PIP_REPORT=str(self.folder / f"report-{len(done)}.json")))
                if done[-1].returncode:
                    break
        return done

    def run(self, line: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", "-c", line]
        environment = self.environment(**more)
        return subprocess.run(
            command, cwd=self.folder / "work", env=environment, capture_output=True, text=True, check=False
        )

    def copy(self, *words: str) -> None:
        *sources, target = words
        for source in sources:
            place = self.folder / "work" / target
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, dirs_exist_ok=True)
            else:
                place = place / Path(source).name if target.endswith("/") else place
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / source, place)

    def fetched(self) -> dict[str, str]:
        """name -> version of all that pip put in, by its own reports."""
        reports = [json.loads(path.read_text(encoding="utf-8")) for path in self.folder.glob("report-*.json")]
        return {item["metadata"]["name"].lower(): item["metadata"]["version"] for r in reports for item in r["install"]}

    def versions(self) -> dict[str, str]:
        rows = json.loads(self.pip("list", "--format", "json"))
        return {row["name"].lower().replace("_", "-"): row["version"] for row in rows}


def succeeded(done: list[subprocess.CompletedProcess[str]]) -> None:
    assert not any(run.returncode for run in done), done[-1].stdout + done[-1].stderr


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of ours that ends a failed step."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stderr.splitlines()[-1] == line
    return line


def test_the_images_builds_stay_and_no_other_is_fetched(tmp_path: Path, python: Path, registry: Path) -> None:
    image = Image(tmp_path, python, registry, IMAGE)
    done = image.build()
    succeeded(done)
    assert len(done) == len(INSTALLS) == 3
    versions = image.versions()
    assert {name: versions[name.replace("_", "-")] for name in IMAGE} == IMAGE
    assert not FOREIGN & image.fetched().keys()
    assert image.fetched()["megatron-core"] == "0.19.2"
    told = json.loads((tmp_path / "work" / "versions.json").read_text(encoding="utf-8"))
    assert told["kept"] == {name.replace("_", "-"): version for name, version in IMAGE.items()}
    assert (told["ngc_tag"], told["packages"]["numpy"]) == ("26.05-py3", "9999.0")
    where = image.run("cd / && python -c 'import megatron_ipt; print(megatron_ipt.__path__[0])'")
    assert Path(where.stdout.strip()) == tmp_path / "work" / "megatron_ipt"
    assert (image.venv / "bin" / "ipt").exists()


def test_a_triton_of_another_name_is_not_written_over(tmp_path: Path, python: Path, registry: Path) -> None:
    image = Image(tmp_path, python, registry, {"torch": NGC_TORCH, "pytorch-triton": "3.3.1+git1234"})
    succeeded(image.build(stop_before=2, resolve_only=True))
    assert "megatron-core" in image.fetched()
    assert not FOREIGN & image.fetched().keys()
    image.pip("check")


def test_an_image_without_triton_gets_the_registrys(tmp_path: Path, python: Path, registry: Path) -> None:
    image = Image(tmp_path, python, registry, {"torch": NGC_TORCH})
    succeeded(image.build(stop_before=2, resolve_only=True))
    assert FOREIGN & image.fetched().keys() == {"triton"}


def test_a_torch_that_changed_fails_the_build(tmp_path: Path, python: Path, registry: Path) -> None:
    image = Image(tmp_path, python, registry, IMAGE)
    image.build(stop_before=1)
    image.pip("install", "--no-index", "--no-deps", "--force-reinstall", next(registry.glob("torch-9999.0-*.whl")))
    image.pip("uninstall", "--yes", "apex")
    line = refused(image.run(INSTALLS[-1]))
    assert f"torch {NGC_TORCH} -> 9999.0" in line
    assert "apex 0.1 -> none" in line
    assert not (tmp_path / "work" / "versions.json").exists()


@pytest.mark.parametrize("wanted", ["torch>=90", "apex>=0.9"])
def test_a_requirement_that_only_another_build_meets_fails_the_build(
    tmp_path: Path, python: Path, registry: Path, wanted: str
) -> None:
    own = tmp_path / "registry"
    shutil.copytree(registry, own)
    stand_in(own, "accelerate", "99.1", [wanted])
    next(own.glob("accelerate-9999.0-*.whl")).unlink()
    image = Image(tmp_path, python, own, {"torch": NGC_TORCH})
    done = image.build()
    assert len(done) == 2
    assert "pip install: failed" in refused(done[-1])
    assert image.versions()["torch"] == NGC_TORCH
    assert "apex" not in image.versions()


def test_an_image_without_torch_is_not_taken(tmp_path: Path, python: Path, registry: Path) -> None:
    image = Image(tmp_path, python, registry, {})
    assert "torch: not installed" in refused(image.build()[-1])


def test_a_label_that_is_not_true_fails_the_build(tmp_path: Path, python: Path, registry: Path) -> None:
    image = Image(tmp_path, python, registry, IMAGE)
    image.build(stop_before=1)
    done = image.run(INSTALLS[-1], PROJECT_VERSION="7.0")
    assert "label instruction-pretraining=7.0: 0.1.0 is installed" in refused(done)


@pytest.mark.long
def test_the_real_registry_is_asked_for_none_of_them(tmp_path: Path, python: Path) -> None:
    """All that the real requirements lead to, resolved and not installed: nothing of the image's, nothing of CUDA."""
    image = Image(tmp_path, python, None, IMAGE)
    succeeded(image.build(stop_before=2, resolve_only=True))
    fetched = image.fetched()
    assert {"megatron-core", "transformers", "lm_eval", "accelerate"} <= fetched.keys()
    assert not FOREIGN & fetched.keys()
    assert not [name for name in fetched if name.startswith(("nvidia-", "cuda-"))]
