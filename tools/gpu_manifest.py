"""MANIFEST.json of a folder of wheels: what each file must be, and files cut into parts for a road that takes no more.

    {"format_version": 1, "python": "cp312", "torch": "2.11.0", "transformer_engine": {"version": ..., "torch": ...},
     "requirements": [...], "lacking": [...],
     "files": [{"name": ..., "size": ..., "sha256": ..., "parts": [{"name": ..., "size": ..., "sha256": ...}]}]}

`tools/gpu_wheels.py` writes it, `tools/gpu_check.py` holds the folder against it.  Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from data_prep.errors import UserError

MANIFEST: Final = "MANIFEST.json"
FORMAT_VERSION: Final = 1
AGAIN: Final = "bring it again from where tools/gpu_wheels.sh wrote it"
_CHUNK: Final = 1 << 20
_UNITS: Final = {"K": 10**3, "M": 10**6, "G": 10**9}


def parse_size(text: str) -> int:
    """A size in bytes: `60M` is 60,000,000; K, M and G are powers of 1,000.  ValueError for another text."""
    number, unit = (text[:-1], _UNITS[text[-1].upper()]) if text[-1:].upper() in _UNITS else (text, 1)
    size = int(number) * unit
    if size < 1:
        raise ValueError(f"{text} is no size")
    return size


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def described(path: Path) -> dict[str, Any]:
    return {"name": path.name, "size": path.stat().st_size, "sha256": sha256(path)}


def place(wheel: Path, folder: Path, part_size: int) -> dict[str, Any]:
    """`wheel` in `folder`, in parts of at most `part_size` bytes where it is larger; its entry of the manifest."""
    entry = described(wheel)
    if entry["size"] <= part_size:
        target = folder / wheel.name
        if not target.exists() or sha256(target) != entry["sha256"]:
            _written(target, wheel.read_bytes())
        return {**entry, "parts": []}
    parts = []
    with wheel.open("rb") as file:
        for number, content in enumerate(iter(lambda: file.read(part_size), b"")):
            part = folder / f"{wheel.name}.part{number:02d}"
            _written(part, content)
            parts.append(described(part))
    return {**entry, "parts": parts}


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Last, and at once; what an earlier manifest lists and this one does not is removed."""
    stale = names(read(folder)) if (folder / MANIFEST).exists() else set()
    for name in stale - names(manifest):
        (folder / name).unlink(missing_ok=True)
    content = json.dumps({"format_version": FORMAT_VERSION, **manifest}, indent=1) + "\n"
    _written(folder / MANIFEST, content.encode())


def read(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`; UserError where there is none that can be read."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            path, "is not there", "make the folder with tools/gpu_wheels.sh, and bring all of it"
        ) from error
    except ValueError as error:
        raise UserError(path, f"is not JSON ({error})", AGAIN) from error
    if manifest.get("format_version") != FORMAT_VERSION:
        raise UserError(path, f"is not of format {FORMAT_VERSION}", "make the folder with this version's gpu_wheels.sh")
    return manifest


def names(manifest: Mapping[str, Any]) -> set[str]:
    """The files that lie in the folder: parts instead of what they are parts of."""
    return {file["name"] for file in lying(manifest)}


def lying(manifest: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for file in manifest["files"]:
        yield from file["parts"] or [file]


def check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """UserError for the first file that is missing or is not the one that was collected."""
    for file in lying(manifest):
        path = folder / file["name"]
        if not path.exists():
            raise UserError(path, f"is missing ({file['size']:,} bytes)", AGAIN)
        size = path.stat().st_size
        if size != file["size"]:
            raise UserError(path, f"has {size:,} bytes, not {file['size']:,}", AGAIN)
        if sha256(path) != file["sha256"]:
            raise UserError(path, "is damaged: its sha256 is not the manifest's", AGAIN)


def join(folder: Path, manifest: Mapping[str, Any], joined: Path) -> None:
    """Files that came in parts are made whole in `joined`, once; `check_files` has passed."""
    joined.mkdir(parents=True, exist_ok=True)
    for file in manifest["files"]:
        target = joined / file["name"]
        if not file["parts"] or (target.exists() and sha256(target) == file["sha256"]):
            continue
        whole = target.with_name(target.name + ".tmp")
        with whole.open("wb") as out:
            for part in file["parts"]:
                with (folder / part["name"]).open("rb") as content:
                    shutil.copyfileobj(content, out, _CHUNK)
        if sha256(whole) != file["sha256"]:
            raise UserError(folder / file["name"], "its parts do not make the file they are parts of", AGAIN)
        whole.replace(target)


def _written(path: Path, content: bytes) -> None:
    """At once: a cut copy never has the name."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
