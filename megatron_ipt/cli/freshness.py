"""Whether a step must run again: are its settings, the content of its inputs and outputs, and the version unchanged?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xxhash


@dataclass(frozen=True, slots=True)
class Record:
    """What `ipt run` keeps of a finished step, in OUTPUT_DIR/.steps/NAME.json."""

    name: str
    key: str
    outputs: str
    seconds: float
    peak_memory_bytes: int | None

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        waiting = folder / f"{self.name}.partial"
        waiting.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")
        waiting.replace(folder / f"{self.name}.json")

    @classmethod
    def read(cls, folder: Path, name: str) -> Record | None:
        """The record of a step, or None where there is none or it is not readable."""
        try:
            return cls(**json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def key_of(name: str, settings: Mapping[str, Any], inputs: Iterable[Path]) -> str:
    """Everything a step's result depends on, as one hash."""
    parts = {"name": name, "settings": settings, "version": version("instruction-pretraining")}
    return _hash(json.dumps(parts, sort_keys=True), content_of(inputs))


def content_of(paths: Iterable[Path]) -> str:
    """One hash of the names and bytes of files, and of all files below folders; a missing one counts as missing."""
    return _hash(*(_content(path) for path in paths))


def _content(path: Path) -> str:
    if path.is_dir():
        return _hash(
            *(f"{file.relative_to(path)} {_content(file)}" for file in sorted(path.rglob("*")) if file.is_file())
        )
    if not path.exists():
        return "missing"
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _hash(*parts: str) -> str:
    return xxhash.xxh3_128("\0".join(parts).encode()).hexdigest()
