"""The folder of checkpoints: the card beside each, which is the newest, and how one comes to stand there whole.

No tensor and no pickle is opened here, and nothing of torch or Megatron imported.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture

LATEST: Final = "latest_checkpointed_iteration.txt"
CARD: Final = "run_card.json"
CARD_FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class RunCard:
    """What a checkpoint is.  `consumed_samples` with `blend_hash` is the whole data position."""

    iteration: int
    consumed_samples: int
    architecture: Architecture
    padded_vocab_size: int
    blend_hash: str
    load_hf: str
    versions: dict[str, str]
    recipe: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"format_version": CARD_FORMAT_VERSION, **plain, "architecture": self.architecture.to_json()}

    @classmethod
    def read(cls, checkpoint: Path) -> RunCard:
        """The card of an `iter_*` folder; UserError where there is none or it is of another format."""
        path = checkpoint / CARD
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(
                checkpoint, f"not a checkpoint of ours ({CARD} is missing)", "give an iter_* folder"
            ) from error
        except ValueError as error:
            raise UserError(path, f"not JSON ({error})", "use another checkpoint") from error
        if row.pop("format_version", None) != CARD_FORMAT_VERSION:
            raise UserError(path, f"not format version {CARD_FORMAT_VERSION}", "use the version of ipt that wrote it")
        return cls(**{**row, "architecture": Architecture(**row["architecture"])})


def latest(folder: Path) -> Path | None:
    """The newest finished checkpoint under `folder`, or None; UserError if the one that `latest` names is gone."""
    tracker = folder / LATEST
    if not tracker.exists():
        return None
    written = tracker.read_text(encoding="utf-8").strip()
    if not written.isdigit():
        raise UserError(tracker, f"holds '{written}', not an iteration", "write the number of an iter_* folder into it")
    checkpoint = folder_of(folder, int(written))
    if not checkpoint.is_dir() and _aside(checkpoint).is_dir():
        return _aside(checkpoint)
    if not checkpoint.is_dir():
        raise UserError(
            tracker, f"names {checkpoint.name}, which is not there", "restore it or write another iteration"
        )
    return checkpoint


def resolve(path: Path) -> Path:
    """`path` itself if it is an iter_* folder, else the newest checkpoint below it."""
    found = path if (path / CARD).exists() else latest(path)
    if found is None:
        raise UserError(path, "no checkpoint there", f"give an iter_* folder or one with {LATEST}")
    return found


def folder_of(folder: Path, iteration: int) -> Path:
    return folder / f"iter_{iteration:07d}"


def partial_of(final: Path) -> Path:
    """Where a checkpoint is written before it is whole."""
    return final.with_name(final.name + ".partial")


def fresh_folder(partial: Path) -> None:
    """An empty folder for the checkpoint to come; what an interrupted save left is removed."""
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)


def write_card(partial: Path, card: RunCard) -> None:
    (partial / CARD).write_text(json.dumps(card.to_json(), indent=2), encoding="utf-8")


def commit(partial: Path, final: Path, card: RunCard) -> None:
    """The rename, then `latest`; each is on the disk before the next begins.

    Where an iteration is written anew, the one before stands aside until then: `latest` finds it there.
    """
    before = _aside(final)
    for path in partial.iterdir():
        _to_disk(path)
    _to_disk(partial)
    if final.exists():
        shutil.rmtree(before, ignore_errors=True)
        final.rename(before)
    partial.rename(final)
    _to_disk(final.parent)
    tracker = final.parent / LATEST
    waiting = tracker.with_suffix(".partial")
    waiting.write_text(str(card.iteration), encoding="utf-8")
    _to_disk(waiting)
    waiting.replace(tracker)
    _to_disk(final.parent)
    shutil.rmtree(before, ignore_errors=True)


def _aside(final: Path) -> Path:
    """Where a checkpoint stands while its iteration is written anew."""
    return final.with_name(final.name + ".before")


def _to_disk(path: Path) -> None:
    """fsync of a file or a folder: without it a power failure can keep a rename and lose what was renamed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mend(folder: Path) -> str:
    before = latest(folder)
    kept = f"{before.name} is untouched" if before else "nothing was there before"
    free = shutil.disk_usage(folder).free / 2**30
    return f"{free:.1f} GiB are free there: make room if that is too little, and start again; {kept}"
