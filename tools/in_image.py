#!/usr/bin/env python3
"""Installs this project in an NGC PyTorch image and holds that the image's own builds stay; the Dockerfile calls it.

    in_image.py freeze FILE            what the image brings, as pip constraints
    in_image.py install FILE ARGS...   pip install ARGS under them, then compare
    in_image.py check FILE             compare, hold the versions that labels name, write what is installed

NVIDIA builds torch, Transformer Engine and apex for one another: a wheel of another build in place of one breaks the
rest at run time.  pip keeps an installed pre-release such as `2.12.0a0+5aff3928d8.nv26.05` where `torch>=2.8` is asked,
and a constraint on the exact version forbids every other.  An image that is too old for a requirement fails to resolve.

Standard library only: it runs before anything else is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import distributions, packages_distributions, version
from pathlib import Path

KEPT = re.compile(r"torch|torchvision|apex|triton|pytorch-triton|transformer-engine(-.+)?|flash-attn(-.+)?")
"""Canonical names of distributions that stay as the image has them."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Install this project beside the builds of an NGC PyTorch image.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, purpose in (
        ("freeze", "write what the image brings, as pip constraints"),
        ("install", "pip install under the constraints, then compare"),
        ("check", "compare the image's builds with the constraints"),
    ):
        verb = verbs.add_parser(name, help=purpose, description=purpose)
        verb.add_argument("constraints", type=Path, help="file of pip constraints; `freeze` writes it")
        if name == "check":
            verb.add_argument("--record", type=Path, help="JSON file for the versions of everything installed")
            verb.add_argument("--label", action="append", default=[], help="NAME=VERSION that must be installed")
    arguments, rest = parser.parse_known_args()
    if rest and arguments.verb != "install":
        parser.error(f"unknown: {' '.join(rest)}")
    if arguments.verb == "freeze":
        freeze(arguments.constraints)
    elif arguments.verb == "install":
        install(arguments.constraints, rest)
    else:
        check(arguments.constraints)
        check_labels(arguments.label)
        if arguments.record:
            record(arguments.record, arguments.constraints)


def freeze(file: Path) -> None:
    """Write the constraints.  Where the image has no apex they shut out the registry's, which is another project."""
    name_the_owner_of_triton()
    here = kept()
    if "torch" not in here:
        fail("torch: not installed; FROM must name an NGC PyTorch image")
    lines = [f"{name}=={found}" for name, found in sorted(here.items())]
    file.write_text("\n".join([*lines, *([] if "apex" in here else ["apex<0"])]) + "\n", encoding="utf-8")
    sys.stdout.write(f"kept as they are: {', '.join(lines)}\n")


def name_the_owner_of_triton() -> None:
    """Where the module triton stands under another name (pytorch-triton), add a distribution `triton` without files.

    Else pip, which goes by names, would write the registry's triton over the one that torch was built with.
    """
    module = importlib.util.find_spec("triton")
    if module is None or module.origin is None or "triton" in kept():
        return
    owners = packages_distributions().get("triton", [])
    if not owners:
        fail("triton: the image has the module but no distribution that owns it; its version is unknown")
    found = version(owners[0])
    folder = Path(module.origin).parents[1] / f"triton-{found}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: triton\nVersion: {found}\n", encoding="utf-8")
    (folder / "INSTALLER").write_text(f"{Path(__file__).name}\n", encoding="utf-8")
    (folder / "RECORD").write_text("".join(f"{folder.name}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD")))


def install(file: Path, arguments: list[str]) -> None:
    """pip install, then `check`.

    The image's own constraints (PIP_CONSTRAINT) pin all it was built with, setuptools included: ours stand in for them.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    environment |= {"PIP_BREAK_SYSTEM_PACKAGES": "1", "PIP_ROOT_USER_ACTION": "ignore", "PIP_NO_CACHE_DIR": "1"}
    command = [sys.executable, "-m", "pip", "install", "--constraint", str(file), *arguments]
    if subprocess.run(command, env=environment, check=False).returncode:
        fail("pip install: failed, see above; where it names torch, take an image whose torch satisfies setup.py")
    check(file)


def check(file: Path) -> None:
    """Exit with one line if a build of the image was replaced or removed, or one came that it did not have.

    Only triton may come: an image without the module needs the registry's.
    """
    lines = file.read_text(encoding="utf-8").split()
    before = dict(line.split("==") for line in lines if "==" in line)
    after = kept()
    new = after.keys() - before.keys() - {"triton"}
    changed = [name for name in sorted(before.keys() | new) if before.get(name) != after.get(name)]
    if changed:
        told = [f"{name} {before.get(name, 'none')} -> {after.get(name, 'none')}" for name in changed]
        fail(f"the image's own builds changed: {', '.join(told)}; find what asked for it with `pip install --report`")


def check_labels(labels: list[str]) -> None:
    here = installed()
    for name, wanted in (label.split("=", 1) for label in labels):
        if here.get(name) != wanted:
            fail(
                f"label {name}={wanted}: {here.get(name, 'nothing')} is installed; give the build argument its version"
            )


def record(out: Path, file: Path) -> None:
    content = {
        "ngc_tag": os.environ.get("NGC_TAG", ""),
        "python": platform.python_version(),
        "kept": {name: found for name, found in kept().items() if f"{name}==" in file.read_text(encoding="utf-8")},
        "packages": installed(),
    }
    out.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def installed() -> dict[str, str]:
    """Canonical name -> version; of two under one name the one that imports."""
    found: dict[str, str] = {}
    for distribution in distributions():
        found.setdefault(re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower(), distribution.version)
    return found


def kept() -> dict[str, str]:
    return {name: found for name, found in installed().items() if KEPT.fullmatch(name)}


def fail(line: str) -> None:
    sys.exit(f"error: {line}")


if __name__ == "__main__":
    main()
