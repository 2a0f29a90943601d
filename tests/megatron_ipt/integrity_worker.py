"""On several ranks: the hashes of small folders, written and held against them, with faults of one rank.

    torchrun integrity_worker.py FOLDER

FOLDER/files is hashed.  Writes FOLDER/RANK.json: what this rank hashed, and what each fault told it.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from data_prep.errors import UserError
from megatron_ipt.mcore import integrity, parallel

SHARD = "__1_0.distcp"


def told(folder: Path, *, trusted: bool = False) -> str:
    try:
        with integrity.trusting(trusted):
            integrity.verify(folder)
    except UserError as error:
        return str(error)
    return "as it was written"


def on_first(action: Callable[[], Any]) -> None:
    """`action` on rank 0, while the other waits."""
    dist.barrier()
    if dist.get_rank() == 0:
        action()
    dist.barrier()


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    """Within the block the file holds `content`."""
    before = path.read_bytes()
    on_first(lambda: path.write_bytes(content))
    yield
    on_first(lambda: path.write_bytes(before))


@contextmanager
def hashing(action: Callable[[Path], None]) -> Iterator[None]:
    """Within the block `action` is called with each file before it is hashed."""
    plain = integrity._hash

    def hashed(path: Path) -> str:
        action(path)
        return plain(path)

    integrity._hash = hashed
    yield
    integrity._hash = plain


def broken(path: Path) -> None:
    if path.name == "__0_1.distcp":
        raise OSError(5, "Input/output error", str(path))


def written(folder: Path) -> dict[str, Any]:
    """What megatron-core writes, aside; then ours, and its first verification."""
    from megatron.core.dist_checkpointing.validation import save_integrity_manifest

    on_first(lambda: save_integrity_manifest(str(folder)))
    on_first(lambda: (folder / integrity.INTEGRITY).rename(folder.parent / "theirs.json"))
    writes: list[str] = []
    reads: list[str] = []
    with hashing(lambda path: writes.append(path.name)):
        integrity.write(folder)
    with hashing(lambda path: reads.append(path.name)):
        right = told(folder)
    return {"written": writes, "right": right, "verified": reads, "right_and_trusted": told(folder, trusted=True)}


def damaged(folder: Path) -> dict[str, str]:
    found = {}
    with hashing(broken):
        found["unreadable"] = told(folder)
    with changed(folder / SHARD, b"!"):
        found["changed"], found["changed_and_trusted"] = told(folder), told(folder, trusted=True)
    with changed(folder / integrity.INTEGRITY, b"[]"):
        found["no_list"] = told(folder)
    return found


def unlisted(folder: Path) -> dict[str, str]:
    """One file is missing; then it is there, and a foreign one besides; then there is no list."""
    found = {}
    on_first(lambda: (folder / SHARD).rename(folder / "foreign"))
    found["missing"] = told(folder)
    on_first(lambda: shutil.copy(folder / "foreign", folder / SHARD))
    found["foreign"], found["foreign_and_trusted"] = told(folder), told(folder, trusted=True)
    on_first(lambda: (folder / integrity.INTEGRITY).rename(folder.parent / "ours.json"))
    found["unlisted"], found["unlisted_and_trusted"] = told(folder), told(folder, trusted=True)
    on_first(lambda: (folder.parent / "ours.json").rename(folder / integrity.INTEGRITY))
    on_first((folder / "foreign").unlink)
    return found


def main(root: Path) -> None:
    folder = root / "files"
    with parallel.distributed():
        found = {**written(folder), **damaged(folder), **unlisted(folder)}
        found["shares"] = integrity.shares({"a": 5, "b": 4, "c": 3, "d": 3, "e": 1}, 2)
        (root / f"{dist.get_rank()}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
