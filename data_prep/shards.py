"""Shards: an input cut into slices, each worked on by itself, in any order, by anyone, and done when it is in place.

A slice is a range of bytes of a JSONL file that begins and ends at line ends, a range of row groups of a Parquet file,
or the whole of a compressed file, which cannot be cut.  What a slice yields depends on the slice only, so the result
does not depend on who did what, nor on how often it was interrupted.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import xxhash

from data_prep.errors import UserError
from data_prep.manifest import BLOCK_BYTES, InputFile

_PIECE_BYTES = 1 << 18
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of an input file: bytes [start, end) of JSONL, the first of them in line `first`; or row groups
    [start, end) of Parquet, the first of them with row `first`.  Lines and rows are counted from 1."""

    path: Path
    start: int
    end: int
    first: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """The slices of some input files, in their order, and what the files were.

    `identities` has a hash for each slice, of its place and of the blocks it lies in: equal ones give equal results.
    """

    slices: tuple[Slice, ...]
    identities: tuple[str, ...]
    inputs: tuple[InputFile, ...]


def plan(paths: Sequence[Path], slice_bytes: int, threads: int = 1) -> Plan:
    """Cuts files into slices of about `slice_bytes`; reads each once, for its hash and its line ends.

    Errors: a UserError for a file that is missing or cannot be read.
    """
    names = names_of(paths)
    slices: list[Slice] = []
    identities: list[str] = []
    inputs: list[InputFile] = []
    with ThreadPoolExecutor(threads) as pool:
        for path in paths:
            if not path.is_file():
                mend = "give the path of a .jsonl, .jsonl.gz, .jsonl.zst or .parquet file"
                raise UserError(path, "no such file", mend)
            cut_lines = path.suffix not in (".gz", ".zst", ".parquet")
            starts = range(0, path.stat().st_size, BLOCK_BYTES)
            blocks = list(pool.map(partial(_scan, path, slice_bytes if cut_lines else 0), starts))
            digest = xxhash.xxh3_128_hexdigest("".join(block.hash for block in blocks).encode())
            inputs.append(InputFile(name=names[path], bytes=path.stat().st_size, hash=digest))
            for part in _cut(path, blocks, slice_bytes):
                slices.append(part)
                identities.append(_identity(part, names[path], blocks, whole=not cut_lines))
    return Plan(tuple(slices), tuple(identities), tuple(inputs))


def names_of(paths: Sequence[Path]) -> dict[Path, str]:
    """The shortest ends of paths, of one length, that tell different files apart: the name, FOLDER/NAME, ..."""
    files = {path.resolve() for path in paths}
    for count in range(1, max((len(path.parts) for path in files), default=1) + 1):
        if len({path.parts[-count:] for path in files}) == len(files):
            break
    return {path: Path(*path.resolve().parts[-count:]).as_posix() for path in paths}


def _identity(part: Slice, name: str, blocks: Sequence[_Block], whole: bool) -> str:
    inside = blocks if whole else blocks[part.start // BLOCK_BYTES : (part.end - 1) // BLOCK_BYTES + 1]
    content = [name, part.start, part.end, part.first, *(block.hash for block in inside)]
    return xxhash.xxh3_128_hexdigest(repr(content).encode())


@dataclass(frozen=True, slots=True)
class _Block:
    """A block of a file: its hash, its line ends, and places to cut: (byte after a line end, line ends up to there)."""

    hash: str
    lines: int
    cuts: tuple[tuple[int, int], ...]


def _scan(path: Path, slice_bytes: int, start: int) -> _Block:
    """Reads the block in pieces that fit a processor's cache."""
    hasher, lines, cuts = xxhash.xxh3_128(), 0, list[tuple[int, int]]()
    # Places to cut lie on a grid of the file, so that they do not depend on how it is read.
    goal = -(-start // slice_bytes) * slice_bytes if slice_bytes else 0
    with path.open("rb") as file:
        file.seek(start)
        place = start
        while place < start + BLOCK_BYTES and (data := file.read(_PIECE_BYTES)):
            hasher.update(data)
            while slice_bytes and goal < place + len(data):
                found = data.find(b"\n", max(0, goal - place))
                if found < 0:
                    break  # the line goes on in the next piece
                cuts.append((place + found + 1, lines + data.count(b"\n", 0, found + 1)))
                goal += slice_bytes
            lines += data.count(b"\n") if slice_bytes else 0
            place += len(data)
    return _Block(hasher.hexdigest(), lines, tuple(cuts))


def _cut(path: Path, blocks: Sequence[_Block], slice_bytes: int) -> Iterator[Slice]:
    size = path.stat().st_size
    if path.suffix == ".parquet":
        yield from _cut_row_groups(path, slice_bytes)
        return
    start, first, lines = 0, 1, 0
    for block in blocks:
        for end, before in block.cuts:
            # A cut on the first place of the grid would leave a slice of one line, two in one line an empty one.
            if end - start >= max(1, slice_bytes // 2) and end < size:
                yield Slice(path, start, end, first)
                start, first = end, lines + before + 1
        lines += block.lines
    if start < size:
        yield Slice(path, start, size, first)


def _cut_row_groups(path: Path, slice_bytes: int) -> Iterator[Slice]:
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(path, f"not a Parquet file ({error})", "write it again") from error
    start, first, size, rows = 0, 1, 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        rows += metadata.row_group(group).num_rows
        if size >= slice_bytes or group == metadata.num_row_groups - 1:
            yield Slice(path, start, group + 1, first)
            start, first, size = group + 1, rows + 1, 0


# The task function of a worker process, made once in each; never set in the process that starts them.
_work: Callable[[Any], Any] | None = None


def run_tasks[T, R](make: Callable[[], Callable[[T], R]], tasks: Sequence[T], workers: int) -> Iterator[R]:
    """What the function that `make` makes gives for each task, in the order in which they end.

    Each of the `workers` processes calls `make` once, and does each task in a fork of itself: what a task leaves in
    memory, a cache say, goes with the fork, and what `make` made costs nothing again.  With no worker, or one task, it
    is this process.  `make`, tasks and results are pickled.  Errors: what the function raises, once the tasks under
    way have ended; ChildProcessError or BrokenProcessPool if a process dies.
    """
    if workers == 0 or len(tasks) <= 1:
        if tasks:
            yield from map(make(), tasks)
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(min(workers, len(tasks)), context, _prepare, (make,))
    try:
        for future in as_completed([executor.submit(_call, task) for task in tasks]):
            yield future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _prepare(make: Callable[[], Callable[[Any], Any]]) -> None:
    global _work
    end_with_parent()
    # No threads in a process that forks: they would be missing in the fork.
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    _work = make()
    gc.freeze()  # a collection in the fork would touch, and so copy, what it shares


def end_with_parent() -> None:
    """Lets the system end this process when its parent dies, or the next run would find it still writing (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _call(task: Any) -> Any:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(task, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        told = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 0 or not told:
        raise ChildProcessError(f"a task ended with {code}" + (" (a signal)" if code < 0 else ""))
    done, result = pickle.loads(told)
    if not done:
        raise result
    return result


def _answer(task: Any, writer: int) -> NoReturn:
    """In the fork: does the task, tells the result, and ends without what its parent would do at its own end."""
    assert _work is not None
    end_with_parent()
    code = 1
    try:
        try:
            answer = pickle.dumps((True, _work(task)))
        except Exception as error:
            error.add_note(traceback.format_exc())  # the traceback itself does not travel
            answer = pickle.dumps((False, error))
        with os.fdopen(writer, "wb") as stream:
            stream.write(answer)
        code = 0
    finally:
        os._exit(code)
