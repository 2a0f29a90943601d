"""What tools/gpu_wheels.sh takes along: pip's report read, and Transformer Engine's needs; all else is pip's work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import gpu_wheels

METADATA = """Metadata-Version: 2.4
Name: transformer_engine_torch
Version: 2.20.2
Requires-Dist: torch>=2.1
Requires-Dist: einops
Requires-Dist: onnx (>=1.17)
Requires-Dist: nvidia-cudnn-frontend>=1.29.0
Requires-Dist: transformer_engine_cu13==2.20.2
Requires-Dist: pytest>=8.2.1; extra == "test"

Requires-Dist: of the description
"""


def package(name: str, version: str, **info: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "version": version}, "download_info": {"url": "u", **info}}


def test_the_report_of_pip_is_read_without_the_checkout() -> None:
    report = {
        "install": [package("Jinja2", "3.1.6", archive_info={}), package("instruction-pretraining", "0.1", dir_info={})]
    }
    assert gpu_wheels.installs(report) == [("jinja2", "3.1.6")]


def test_taken_along_is_what_neither_torch_nor_the_machine_has() -> None:
    whole = [("torch", "2.11.0"), ("numpy", "2.5.5"), ("typer", "0.29"), ("setuptools", "81")]
    there = {"torch"}
    assert gpu_wheels.beside(whole, there, {}) == whole[1:]
    assert gpu_wheels.beside(whole, there, {"numpy": "2.5.5", "typer": "0.28"}) == whole[2:]


def test_a_freeze_is_read_for_what_it_pins() -> None:
    lines = ["# a comment", "Torch==2.11.0+cu130", "numpy==2.5.2", "mine @ file:///mine.whl", "-e .", "PyYAML==6.0.3"]
    freeze = "\n".join(lines)
    assert gpu_wheels.pinned(freeze) == {"torch": "2.11.0", "numpy": "2.5.2", "pyyaml": "6.0.3"}


def test_transformer_engine_needs_what_it_imports() -> None:
    """Not torch, which is the machine's; not the parts beside it; not what is for Blackwell's kernels alone."""
    assert gpu_wheels.needs(METADATA) == ["einops", "onnx (>=1.17)"]


@pytest.mark.parametrize(
    ("text", "name"),
    [("Foo_Bar.baz>=1", "foo-bar-baz"), ("onnx (>=1.17)", "onnx"), ("a[b,c]==1", "a"), ("pytest", "pytest")],
)
def test_names_as_the_registry_spells_them(text: str, name: str) -> None:
    assert gpu_wheels.canonical(text) == name


def toolkit(folder: Path, *, headers: bool = True) -> Path:
    nvcc, header = folder / "bin" / "nvcc", folder / "include" / "cuda_runtime.h"
    for path in (nvcc, header) if headers else (nvcc,):
        path.parent.mkdir(parents=True)
        path.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.8, V12.8.61'\n", encoding="utf-8")
    nvcc.chmod(0o755)
    return folder


def test_the_toolkit_named_wins_over_the_one_on_the_path(tmp_path: Path) -> None:
    named, found = toolkit(tmp_path / "named"), toolkit(tmp_path / "found")
    path = {"PATH": str(found / "bin")}
    assert gpu_wheels.cuda_home(path) == found
    assert gpu_wheels.cuda_home({**path, "CUDA_HOME": str(named)}) == named
    assert gpu_wheels.cuda_home({**path, "CUDA_HOME": str(tmp_path / "nowhere")}) == found


def test_a_wrapper_of_nvcc_is_no_toolkit(tmp_path: Path) -> None:
    wrapper = toolkit(tmp_path / "local", headers=False)
    assert gpu_wheels.cuda_home({"PATH": str(wrapper / "bin")}) != wrapper


def test_what_cannot_be_built_here_is_told_with_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The core and the shell lie there; nvcc is another CUDA's, then none at all."""
    engine = gpu_wheels.Engine("2.20.2", "2.11.0", "13", "90")
    folder = tmp_path / engine.folder
    folder.mkdir()
    for name in ("transformer_engine-2.20.2-py3-none-any.whl", "transformer_engine_cu13-2.20.2-py3-none-any.whl"):
        (folder / name).touch()
    toolkit(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    told = gpu_wheels.build(engine, Path(sys.executable), tmp_path)
    assert told == "nvcc is of CUDA 12, torch 2.11.0 of 13; set CUDA_HOME to a toolkit of that"
    monkeypatch.setattr(gpu_wheels, "cuda_home", lambda _: None)
    assert str(gpu_wheels.build(engine, Path(sys.executable), tmp_path)).startswith("no nvcc here; install the CUDA 13")
    (folder / "transformer_engine_torch-2.20.2-cp312-cp312-linux_x86_64.whl").touch()
    assert gpu_wheels.build(engine, Path(sys.executable), tmp_path) is None
