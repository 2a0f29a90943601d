"""Training text -> a dataset: cut the input into slices, index each as a shard, merge the shards.

The shards stand in PREFIX.shards/ until the dataset is in place.  A run that is ended goes on with the shards that
are not done; one with other input, settings or tokenizer starts anew.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from data_prep.errors import UserError
from data_prep.indexing.merge import merge
from data_prep.indexing.reader import open_dataset
from data_prep.indexing.shard import ShardIndexer, ShardTask, recorded
from data_prep.indexing.tokenizer import load_tokenizer
from data_prep.manifest import Manifest, content_hash, manifest_path, package_version, read_manifest, write_json
from data_prep.memory import give_back
from data_prep.settings import IndexSettings
from data_prep.shards import Plan, plan, run_tasks

logger = logging.getLogger(__name__)

Progress = Callable[[int], None]
_JOB = "job.json"
# Less than this is not worth the start of a worker [bytes].
_LEAST_BYTES = 16 << 20


def build(
    settings: IndexSettings, inputs: Sequence[Path], tokenizer_dir: Path, prefix: Path, progress: Progress | None = None
) -> Manifest:
    """See `data_prep.indexing.index`."""
    tokenizer = load_tokenizer(tokenizer_dir, settings)
    give_back()
    size = sum(path.stat().st_size for path in inputs if path.is_file())
    slice_bytes = _begun(prefix, size) or even_slices(size, settings.workers, int(settings.shard_mib * 2**20))
    cut = plan(inputs, slice_bytes, max(1, settings.workers))
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with _shard_folder(prefix) as folder:
        identity = [tokenizer.identity.model_dump(), recorded(settings), package_version(), _shape(cut)]
        tasks = [ShardTask(part, folder / f"{number:05d}") for number, part in enumerate(cut.slices)]
        job = {"job": content_hash({"job": identity}), "bytes": size, "slice_bytes": slice_bytes}
        open_tasks = _not_done(folder, tasks, job)
        try:
            for manifest in run_tasks(ShardIndexer(tokenizer, settings), open_tasks, settings.workers):
                if progress:
                    progress(manifest.documents + sum(manifest.dropped.values()))
            shards = [task.prefix for task in tasks if read_manifest(task.prefix).documents]
            if not shards:
                raise UserError(", ".join(map(str, inputs)), "no document with text in it", "nothing was written")
        except UserError:
            shutil.rmtree(folder)  # a shard is of no use once the input is mended
            raise
        except (BrokenProcessPool, ChildProcessError) as error:
            mend = "run again, with fewer workers if memory was short: what is done is kept"
            raise UserError(prefix, f"one of the workers was killed ({error})", mend) from error
        empty = sum(read_manifest(task.prefix).dropped["empty"] for task in tasks if task.prefix not in shards)
        manifest = merge(shards, prefix, recorded(settings), cut.inputs, {"empty": empty}, check=False)
        shutil.rmtree(folder)
    return manifest


def even_slices(size: int, workers: int, most: int) -> int:
    """Length of slices of at most `most` bytes that keep all workers busy to the end [bytes]."""
    workers, most = max(1, workers), max(1, most)
    rounds = max(1, -(-size // (workers * most)))
    return min(most, max(-(-size // (workers * rounds)), _LEAST_BYTES))


def _folder(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".shards")


def _begun(prefix: Path, size: int) -> int | None:
    """Length of the slices of the run that goes on here [bytes], whatever number of workers it had."""
    job = _read_job(_folder(prefix))
    return job.get("slice_bytes") if job.get("bytes") == size else None


def _read_job(folder: Path) -> dict[str, Any]:
    """What the run that was here wrote of itself; empty where there was none, or a power cut tore it."""
    try:
        job = orjson.loads((folder / _JOB).read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return job if isinstance(job, dict) else {}


@contextmanager
def _shard_folder(prefix: Path) -> Iterator[Path]:
    """PREFIX.shards, which one run at a time may use."""
    folder = _folder(prefix)
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(prefix, "another run is writing this dataset", "wait for it, or end it") from error
        yield folder


def _shape(cut: Plan) -> list[object]:
    """What the shards depend on, without the folders of this machine."""
    slices = [[part.path.name, part.start, part.end, part.first] for part in cut.slices]
    return [[file.model_dump() for file in cut.inputs], slices]


def _not_done(folder: Path, tasks: Sequence[ShardTask], job: dict[str, Any]) -> list[ShardTask]:
    """The tasks whose shards are not in place; those of another job are thrown away."""
    if _read_job(folder) != job:
        for file in folder.iterdir():
            if file.name != "lock":
                file.unlink()
        write_json(folder / _JOB, job)
    waiting = [task for task in tasks if not _is_done(task)]
    if len(waiting) < len(tasks):
        logger.info("%d of %d shards are there already", len(tasks) - len(waiting), len(tasks))
    return waiting


def _is_done(task: ShardTask) -> bool:
    """Whether the shard is in place and whole; a power cut may have torn it."""
    if not manifest_path(task.prefix).is_file():
        return False
    try:
        open_dataset(task.prefix, every_block=True)
    except UserError as error:
        logger.info("a shard is made again (%s)", error)
        return False
    return True
