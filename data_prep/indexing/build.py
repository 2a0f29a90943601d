"""Training text -> a dataset: cut the input into slices, index each as a shard, merge the shards.

The shards stand in PREFIX.shards/ until the dataset is in place.  A run that was ended goes on with the shards that
are not done: those of another input, tokenizer or settings are not.  So after a bad line is mended, what stood in the
blocks before it is not indexed again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import orjson

from data_prep.errors import UserError
from data_prep.indexing.merge import merge
from data_prep.indexing.reader import open_dataset
from data_prep.indexing.shard import ShardIndexer, ShardTask, recorded
from data_prep.indexing.tokenizer import load_tokenizer
from data_prep.locks import lock
from data_prep.manifest import Manifest, TokenizerIdentity, manifest_path, package_version, read_manifest, write_json
from data_prep.memory import give_back
from data_prep.settings import IndexSettings
from data_prep.shards import names_of, plan, run_tasks

logger = logging.getLogger(__name__)

Progress = Callable[[int], None]
_JOB = "job.json"
# All that this command ever puts into PREFIX.shards, and so all that it removes there.
_OURS = re.compile(r"(lock|slow|job\.json|\d{5,}\.(bin|idx|spans|lineage\.parquet|manifest\.json))(\.partial)?")
# Less than this is not worth the start of a worker [bytes].
_LEAST_BYTES = 16 << 20


def build(
    settings: IndexSettings, inputs: Sequence[Path], tokenizer_dir: Path, prefix: Path, progress: Progress | None = None
) -> Manifest:
    """See `data_prep.indexing.index`."""
    tokenizer = load_tokenizer(tokenizer_dir, settings)
    give_back()
    size = sum(path.stat().st_size for path in inputs if path.is_file())
    most = int(settings.shard_mib * 2**20)
    slice_bytes = _begun(prefix, size) or even_slices(size, settings.workers, most)
    cut = plan(inputs, slice_bytes, max(1, settings.workers))
    names = names_of(inputs)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with _shard_folder(prefix) as folder:
        tasks = [
            ShardTask(part, names[part.path], identity, folder / f"{number:05d}")
            for number, (part, identity) in enumerate(zip(cut.slices, cut.identities, strict=True))
        ]
        write_json(folder / _JOB, {"bytes": size, "slice_bytes": slice_bytes})
        open_tasks = [task for task in tasks if not _is_done(task, tokenizer.identity, settings)]
        if done := len(tasks) - len(open_tasks):
            logger.info("%d of %d shards are there already", done, len(tasks))
        notice = folder / "slow"
        notice.unlink(missing_ok=True)  # a run that goes on tells it again
        try:
            for manifest in run_tasks(ShardIndexer(tokenizer, settings, notice), open_tasks, settings.workers):
                done += 1
                if progress:
                    progress(manifest.documents + sum(manifest.dropped.values()))
        except UserError as error:
            if not done:
                _clear(folder)
                raise
            mend = f"{error.mend}; then run again: what was done before it is kept in {folder.name}"
            raise UserError(error.where, error.problem, mend) from error
        except (BrokenProcessPool, ChildProcessError) as error:
            mend = "run again, with fewer workers if memory was short: what is done is kept"
            raise UserError(prefix, f"one of the workers was killed ({error})", mend) from error
        shards = [task.prefix for task in tasks if read_manifest(task.prefix).documents]
        if not shards:
            _clear(folder)
            raise UserError(", ".join(map(str, inputs)), "no document with text in it", "nothing was written")
        empty = sum(read_manifest(task.prefix).dropped["empty"] for task in tasks if task.prefix not in shards)
        manifest = merge(shards, prefix, recorded(settings), cut.inputs, {"empty": empty}, check=False)
        _clear(folder)
    return manifest


def _folder(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".shards")


def even_slices(size: int, workers: int, most: int) -> int:
    """Length of slices of at most `most` bytes that keep all workers busy to the end [bytes]."""
    workers, most = max(1, workers), max(1, most)
    rounds = max(1, -(-size // (workers * most)))
    return min(most, max(-(-size // (workers * rounds)), _LEAST_BYTES))


def _begun(prefix: Path, size: int) -> int | None:
    """Length of the slices of the run that goes on here [bytes], whatever number of workers it had.

    Of an input of about the same size, that is: a line of it may have been mended.
    """
    try:
        job = orjson.loads((_folder(prefix) / _JOB).read_bytes())
        return int(job["slice_bytes"]) if 0.9 * size <= job["bytes"] <= 1.1 * size else None
    except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError, KeyError, TypeError):
        return None  # there was none, or a power cut tore it


@contextmanager
def _shard_folder(prefix: Path) -> Iterator[Path]:
    """PREFIX.shards, which one run at a time may use.

    Errors: a UserError if there is a folder of that name that is not of this command; it is left as it is.
    """
    folder = _folder(prefix)
    folder.mkdir(exist_ok=True)
    foreign = sorted(file.name for file in folder.iterdir() if not _OURS.fullmatch(file.name))
    if foreign:
        problem = f"holds {foreign[0]}, and the shards are to be kept in a folder of this name"
        raise UserError(folder, problem, "move it, or give another prefix")
    with (folder / "lock").open("w") as file:
        if not lock(file):
            raise UserError(prefix, "another run is writing this dataset", "wait for it, or end it")
        yield folder


def _clear(folder: Path) -> None:
    for file in folder.iterdir():
        if _OURS.fullmatch(file.name):
            file.unlink()
    folder.rmdir()


def _is_done(task: ShardTask, tokenizer: TokenizerIdentity, settings: IndexSettings) -> bool:
    """Whether the shard is in place, of this input, tokenizer, settings and version, and whole.

    A power cut may have torn it.  Who asks for the tokenizers library has met a disagreement: what gigatoken encoded
    is not taken then, though it passed.
    """
    if not manifest_path(task.prefix).is_file():
        return False
    try:
        found = read_manifest(task.prefix)
        of = (found.tokenizer, found.settings, found.created_by, found.inputs[0].hash)
        if of != (tokenizer, recorded(settings), package_version(), task.identity):
            return False
        if settings.encoder == "tokenizers" and not found.encoder.startswith("tokenizers "):
            return False
        open_dataset(task.prefix, every_block=True)
    except UserError as error:
        logger.info("a shard is made again (%s)", error)
        return False
    return True
