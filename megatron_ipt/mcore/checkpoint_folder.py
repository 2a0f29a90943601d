"""The folder of checkpoints: which is the newest, how one comes to stand there whole, and which are kept.

No tensor and no pickle is opened here, and nothing of torch or Megatron imported.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from data_prep.errors import UserError
from megatron_ipt.mcore.run_card import CARD, RunCard

LATEST: Final = "latest_checkpointed_iteration.txt"
_NAME: Final = re.compile(r"iter_[0-9]{7,}")


def latest(folder: Path) -> Path | None:
    """The newest finished checkpoint under `folder`, or None; UserError if the one that `latest` names is gone.

    Where the file `latest` is missing, of the whole ones beside each other: to begin anew would write over them.
    """
    tracker = folder / LATEST
    if not tracker.exists():
        return max(_whole(folder), key=_iteration, default=None)
    written = tracker.read_text(encoding="utf-8", errors="replace").strip()
    if not (written.isascii() and written.isdigit()):
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
    if found is None and _NAME.fullmatch(path.name) and path.is_dir():
        raise UserError(path, f"not a whole checkpoint ({CARD} is missing)", "use another one")
    if found is None:
        raise UserError(path, "no checkpoint there", f"give an iter_* folder or one with {LATEST}")
    return found


def older(newest: Path) -> list[Path]:
    """The whole checkpoints beside `newest` and older than it, the newest first."""
    number = _iteration(newest.with_suffix(""))
    found = [path for path in _whole(newest.parent) if _iteration(path) < number]
    return sorted(found, key=_iteration, reverse=True)


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


def not_kept(folder: Path, iteration: int, most_recent_k: int | None, retain_interval: int | None) -> list[Path]:
    """The checkpoints to remove once `iteration` is whole: neither among the newest K nor a multiple of the interval.

    Without either setting all are kept; the one just saved always is, and what is newer is of another run's end.
    """
    if most_recent_k is None and retain_interval is None:
        return []
    whole = [_iteration(path) for path in _whole(folder)]
    iterations = sorted((number for number in whole if number <= iteration), reverse=True)
    old = iterations[max(most_recent_k or 1, 1) :]
    return [folder_of(folder, number) for number in old if not retain_interval or number % retain_interval]


def _whole(folder: Path) -> list[Path]:
    """The folders that bear a checkpoint's name; what is half written, stands aside or is somebody's own does not."""
    return [path for path in folder.glob("iter_*") if _NAME.fullmatch(path.name) and path.is_dir()]


def _iteration(path: Path) -> int:
    return int(path.name.removeprefix("iter_"))


def remove(paths: Iterable[Path]) -> None:
    """Delete checkpoints; half of one never bears its name."""
    for path in paths:
        gone = path.with_name(path.name + ".removed")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone)


def mend(folder: Path) -> str:
    before = latest(folder)
    kept = f"{before.name} is untouched" if before else "nothing was there before"
    free = shutil.disk_usage(folder).free / 2**30
    return f"{free:.1f} GiB are free there: make room if that is too little, and start again; {kept}"
