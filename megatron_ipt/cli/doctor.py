"""ipt doctor: what is here, what is missing, and what to do."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import typer
from packaging.requirements import Requirement

from megatron_ipt.cli import tables

PACKAGE = "instruction-pretraining"
GPU_BUILDS = {"transformer-engine": "transformer_engine.pytorch", "apex": "apex"}
"""Distribution -> the module that must import; megatron-core takes them where they are installed."""


def doctor() -> None:
    """Print versions, the device, how CPU and GPU differ, and what is missing; exit code 1 if training cannot run."""
    tables.show("machine", ("what", "here"), _machine())
    rows, missing = _packages()
    tables.show("packages", ("package", "extra", "wanted", "here"), rows)
    faults = _show_gpu_builds()
    if importlib.util.find_spec("torch"):
        from megatron_ipt.mcore import device

        here = "gpu" if device.has_gpu() else "cpu"
        table = [(row.name, str(row.cpu), str(row.gpu), row.reason) for row in device.TABLE]
        tables.show(f"CPU and GPU (this process: {here})", ("what", "cpu", "gpu", "why"), table)
    for extra in sorted({extra for extras in missing.values() for extra in extras}):
        names = ", ".join(name for name, extras in missing.items() if extra in extras)
        mend = _mend(extra)
        tables.console().print(f"missing for {extra or 'the command itself'}: {names}; {mend}", markup=False)
    for name, fault in faults.items():
        tables.console().print(f"{name} does not import: {fault}", markup=False, soft_wrap=True)
    blocked = bool(faults) or any({"", "train"} & extras for extras in missing.values())
    tables.console().print("training cannot run here" if blocked else "ready to train")
    if blocked:
        raise typer.Exit(1)


def _mend(extra: str) -> str:
    """How to install what `extra` lacks.  In an NVIDIA image torch is a build of its own, which must stay."""
    what = f"-e '.[{extra}]'".replace("[]", "")
    if re.search(r"\+(.*\.)?nv", _version("torch") or ""):
        return f"in the checkout: python tools/in_image.py install image.txt {what} (image.txt: by `freeze`)"
    return f"in the checkout: pip install -c constraints-cpu.txt {what}"


def _show_gpu_builds() -> dict[str, str]:
    """Print the builds that megatron-core prefers where they are; what keeps training from starting, by package."""
    installed = {
        name: importlib.util.find_spec(module.split(".")[0]) is not None for name, module in GPU_BUILDS.items()
    }
    told = {name: _fault(GPU_BUILDS[name]) for name, here in installed.items() if here}
    rows = [
        (name, (_version(name) or "version unknown") if here else "none", _told(here, told.get(name)))
        for name, here in installed.items()
    ]
    tables.show("builds for a GPU", ("package", "here", "imports"), rows)
    faults = {name: fault for name, fault in told.items() if fault and name == "transformer-engine"}
    if told and not faults and _version("megatron-core"):
        fault = _fault("megatron_ipt.mcore.model")  # it imports them at its own import
        faults = {"megatron-core": fault} if fault else {}
    return faults


def _told(here: bool, fault: str | None) -> str:
    return (fault or "yes") if here else "-"


def _fault(module: str) -> str | None:
    """Why `module` does not import, in a line, or None."""
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever compiled parts and the libraries they open raise
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[-1] if lines else 'no reason given'}"
    return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _machine() -> list[tuple[str, str]]:
    import os

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    rows = [
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("cores", str(len(os.sched_getaffinity(0)))),
        ("memory", f"{memory:.0f} GiB"),
        ("free disk here", f"{free:.0f} GiB"),
    ]
    if importlib.util.find_spec("torch"):
        import torch

        count = torch.cuda.device_count()
        rows.append(("GPUs", f"{count} x {torch.cuda.get_device_name()}" if count else "none: gloo on the CPU"))
    return rows


def _packages() -> tuple[list[tuple[str, str, str, str]], dict[str, set[str]]]:
    """Rows of (package, extra, wanted, here), each package once, and the missing ones with their extras."""
    rows: dict[str, tuple[str, str, str, str]] = {}
    missing: dict[str, set[str]] = {}
    for text in requires(PACKAGE) or []:
        requirement = Requirement(text)
        extra = str(requirement.marker).split('"')[1] if requirement.marker else ""
        if extra in ("dev", "synth", "gpu"):
            continue
        try:
            here = version(requirement.name)
            if not requirement.specifier.contains(here, prereleases=True):
                here += " (too old)"
                missing.setdefault(requirement.name, set()).add(extra)
        except PackageNotFoundError:
            here = "missing"
            missing.setdefault(requirement.name, set()).add(extra)
        rows.setdefault(requirement.name, (requirement.name, extra, str(requirement.specifier), here))
    return sorted(rows.values(), key=lambda row: (row[1], row[0])), missing
