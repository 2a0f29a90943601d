"""The hashes of a checkpoint's files: written when it is saved, held against the files before any is opened.

    integrity.json    {"algorithm": "sha256", "files": {name: SHA-256 in hex, ...}}, megatron-core's own format

One process hashes about 1.8 GB a second, and a 70B checkpoint has 990 GB: each rank takes its share of the files, by
size.  All ranks call these functions, and a fault of any rank is the same error on all.

A checkpoint without the file, or with a file that it does not list, is opened only within `trusting(True)`: its
pickles can run any code.  A file that is listed and has another hash is damaged, whoever is trusted.
"""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from data_prep.errors import UserError
from megatron_ipt.mcore import parallel

INTEGRITY: Final = "integrity.json"
_ALGORITHM: Final = "sha256"


_trusted: ContextVar[bool] = ContextVar("_trusted", default=False)


class Damaged(UserError):
    """A checkpoint whose files are not as they were written."""


@contextmanager
def trusting(wanted: bool) -> Iterator[None]:
    """Within the block a file that no integrity.json vouches for is opened, if `wanted`."""
    token = _trusted.set(wanted)
    try:
        yield
    finally:
        _trusted.reset(token)


def write(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Hash every file of `folder` and write its integrity.json.  OSError on all ranks if one cannot read or write.

    `known` are hashes that this rank has taken already, of files that it wrote itself.
    """
    found = {name: digest for part in parallel.on_all(lambda: dict(known or {})) for name, digest in part.items()}
    sizes = parallel.on_main(lambda: _sizes(folder))
    found.update(_hashes(folder, {name: size for name, size in sizes.items() if name not in found}))
    content = {"algorithm": _ALGORITHM, "files": dict(sorted(found.items()))}
    parallel.on_main(lambda: (folder / INTEGRITY).write_text(json.dumps(content, indent=2), encoding="utf-8"))


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """Name -> SHA-256 of files that this rank wrote; for `write`.  No other rank has part in it."""
    return {path.name: _hash(path) for path in paths}


def verify(folder: Path) -> None:
    """UserError unless every file is listed in integrity.json and has the hash given there.  Opens no pickle."""
    if _trusted.get() and not parallel.on_main(lambda: (folder / INTEGRITY).exists()):
        return
    try:
        listed: dict[str, str]
        listed, sizes = parallel.on_main(lambda: (_listed(folder), _sizes(folder)))
        missing = sorted(listed.keys() - sizes.keys())
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        found = _hashes(folder, {name: sizes[name] for name in listed})
        changed = sorted(name for name in listed if found[name] != listed[name])
        if changed:
            raise ValueError(f"{', '.join(changed[:3])}: another hash than {INTEGRITY} gives")
    except (OSError, ValueError) as error:
        raise Damaged(folder, f"not as it was written ({error})", "use another checkpoint") from error
    foreign = sorted(sizes.keys() - listed.keys())
    if foreign and not _trusted.get():
        mend = (
            "remove it if it is not yours; --trust-checkpoint (train.trust_checkpoint) opens it, and runs what it says"
        )
        raise UserError(folder / foreign[0], f"{INTEGRITY} does not list this file", mend)


def shares(sizes: Mapping[str, int], ranks: int) -> list[list[str]]:
    """The files that each of `ranks` ranks hashes: the largest first, each to the rank with the least so far.  Pure."""
    found: list[list[str]] = [[] for _ in range(ranks)]
    heap = [(0, rank) for rank in range(ranks)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        load, rank = heapq.heappop(heap)
        found[rank].append(name)
        heapq.heappush(heap, (load + sizes[name], rank))
    return found


def _hashes(folder: Path, sizes: Mapping[str, int]) -> dict[str, str]:
    """SHA-256 of the named files, on every rank.  OSError on all ranks if one of them cannot read a file."""
    rank, ranks = parallel.place()

    def share() -> dict[str, str]:
        return {name: _hash(folder / name) for name in shares(sizes, ranks)[rank]}

    return {name: digest for part in parallel.on_all(share) for name, digest in part.items()}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, _ALGORITHM).hexdigest()


def _listed(folder: Path) -> dict[str, str]:
    try:
        content: Any = json.loads((folder / INTEGRITY).read_text(encoding="utf-8"))
        if content["algorithm"] != _ALGORITHM:
            raise ValueError(f"{INTEGRITY} has the algorithm {content['algorithm']!r}, not {_ALGORITHM}")
        return dict(content["files"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{INTEGRITY} is of another format") from error


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file but integrity.json.  Rank 0 alone asks: on a network file system views differ for a while."""
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.name != INTEGRITY}
