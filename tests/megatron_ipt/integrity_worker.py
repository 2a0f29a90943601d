"""Run by torchrun: the hashes of small folders, written and held against them, with faults of one rank.

    torchrun integrity_worker.py FOLDER

FOLDER/files is hashed.  Writes FOLDER/RANK.json: what this rank hashed, and what each fault told it.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from data_prep.errors import UserError
from megatron_ipt.mcore import integrity, parallel


def told(folder: Path) -> str:
    try:
        integrity.verify(folder)
    except UserError as error:
        return str(error)
    return "as it was written"


def changed(path: Path, content: bytes) -> bytes:
    """Write `content` on rank 0, and give back what stood there."""
    before = path.read_bytes()
    dist.barrier()
    if dist.get_rank() == 0:
        path.write_bytes(content)
    dist.barrier()
    return before


def main() -> None:
    from megatron.core.dist_checkpointing.validation import save_integrity_manifest

    root = Path(sys.argv[1])
    folder, found, hashed = root / "files", {}, []
    plain = integrity._hash

    def noted(path: Path) -> str:
        hashed.append(path.name)
        return plain(path)

    def broken(path: Path) -> str:
        if path.name == "__0_1.distcp":
            raise OSError(5, "Input/output error", str(path))
        return plain(path)

    with parallel.distributed():
        rank = dist.get_rank()
        if rank == 0:
            save_integrity_manifest(str(folder))
            (folder / integrity.INTEGRITY).rename(root / "theirs.json")
        dist.barrier()
        integrity._hash = noted
        integrity.write(folder)
        found["written"], hashed[:] = list(hashed), []
        found["right"] = told(folder)
        found["verified"] = list(hashed)
        integrity._hash = broken
        found["unreadable"] = told(folder)
        integrity._hash = plain
        with integrity.trusting(True):
            found["right_and_trusted"] = told(folder)
        before = changed(folder / "__1_0.distcp", b"!")
        found["changed"] = told(folder)
        with integrity.trusting(True):
            found["changed_and_trusted"] = told(folder)
        changed(folder / "__1_0.distcp", before)
        before = changed(folder / integrity.INTEGRITY, b"[]")
        found["no_list"] = told(folder)
        changed(folder / integrity.INTEGRITY, before)
        if rank == 0:
            (folder / "__1_0.distcp").rename(folder / "foreign")
        dist.barrier()
        found["missing"] = told(folder)
        if rank == 0:
            shutil.copy(folder / "foreign", folder / "__1_0.distcp")
        dist.barrier()
        found["foreign"] = told(folder)
        with integrity.trusting(True):
            found["foreign_and_trusted"] = told(folder)
        dist.barrier()
        if rank == 0:
            (folder / integrity.INTEGRITY).rename(root / "ours.json")
        dist.barrier()
        found["unlisted"] = told(folder)
        with integrity.trusting(True):
            found["unlisted_and_trusted"] = told(folder)
        dist.barrier()
        if rank == 0:
            (root / "ours.json").rename(folder / integrity.INTEGRITY)
            (folder / "foreign").unlink()
        dist.barrier()
        found["shares"] = integrity.shares({"a": 5, "b": 4, "c": 3, "d": 3, "e": 1}, 2)
        _write(root / f"{rank}.json", found)


def _write(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
