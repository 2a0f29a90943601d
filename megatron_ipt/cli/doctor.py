"""ipt doctor: what is here, what is missing, and what to do."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import typer
from packaging.requirements import Requirement

from megatron_ipt.cli import tables

PACKAGE = "instruction-pretraining"


def doctor() -> None:
    """Print versions, the device, how CPU and GPU differ, and what is missing; exit code 1 if training cannot run."""
    tables.show("machine", ("what", "here"), _machine())
    rows, missing = _packages()
    tables.show("packages", ("package", "extra", "wanted", "here"), rows)
    if importlib.util.find_spec("torch"):
        from megatron_ipt.mcore import device

        here = "gpu" if device.has_gpu() else "cpu"
        table = [(row.name, str(row.cpu), str(row.gpu), row.reason) for row in device.TABLE]
        tables.show(f"CPU and GPU (this process: {here})", ("what", "cpu", "gpu", "why"), table)
    for extra in sorted({extra for extras in missing.values() for extra in extras}):
        names = ", ".join(name for name, extras in missing.items() if extra in extras)
        mend = f"in the checkout: pip install -c constraints-cpu.txt -e '.[{extra}]'".replace("[]", "")
        tables.console().print(f"missing for {extra or 'the command itself'}: {names}; {mend}", markup=False)
    blocked = any({"", "train"} & extras for extras in missing.values())
    tables.console().print("training cannot run here" if blocked else "ready to train")
    if blocked:
        raise typer.Exit(1)


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
