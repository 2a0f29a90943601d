"""The folder of a run on its way, OUT.work: the documents cut into shards, and what each shard has come to.

    plan.json                   what is made of what; written last, so that a folder with it has all its shards
    documents/NNNNN.jsonl.zst   the documents of a shard, as they were read
    documents/dropped.jsonl     rows of the input that are no documents, each with its place and reason
    documents/duplicates.npy    which documents have the id of an earlier one, by their number, int64
    journal/NNNNN.jsonl         completions of a shard under way
    results/NNNNN.jsonl.zst     a shard that is done: renamed into place when whole

Any number of processes, on any number of machines that share the folder, may work on different shards at once; the
bytes of a result depend on its shard only.  Nothing here holds more than a shard in memory.
"""

from __future__ import annotations

import errno
import glob
import logging
import os
import shutil
import socket
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from data_prep.draws import draw
from data_prep.errors import UserError
from data_prep.intake import Drop, read_placed
from data_prep.intake.duplicates import Duplicates
from data_prep.locks import is_alive, one_at_a_time
from data_prep.readers import beside, json_line, read_jsonl, write_json, write_jsonl
from data_prep.records import AugmentedText, Document
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.identity import INPUT_FILES, differing

logger = logging.getLogger(__name__)

FORMAT: Final = 1
DUPLICATE: Final = "duplicate_id"
AXIS: Final = "synthesize"


@dataclass(frozen=True)
class Work:
    """A folder whose documents are all in their shards."""

    root: Path
    plan: Mapping[str, Any]

    @property
    def shards(self) -> int:
        return int(self.plan["shards"])

    @property
    def is_retry(self) -> bool:
        """Whether it holds texts that were cut and sampled before, not documents."""
        return "retry" in self.plan

    def journal(self, shard: int) -> Path:
        return self.root / "journal" / f"{shard:05}.jsonl"

    def result(self, shard: int) -> Path:
        return self.root / "results" / f"{shard:05}.jsonl.zst"

    @property
    def dropped(self) -> Path:
        return self.root / "documents" / "dropped.jsonl"

    def missing(self, index: int = 0, of: int = 1) -> list[int]:
        """Shards that are not done, of every `of`-th one from `index` on."""
        return [shard for shard in range(index, self.shards, of) if not self.result(shard).exists()]

    @property
    def is_untouched(self) -> bool:
        """Whether no worker has begun a shard yet."""
        return not any(folder.exists() for folder in (self.journal(0).parent, self.result(0).parent))

    @property
    def has_results(self) -> bool:
        """Whether any shard is done."""
        return any(self.result(0).parent.glob("*.zst"))

    def texts_of(self, shard: int) -> Iterator[Document | AugmentedText | Drop]:
        """What a shard is to be made of: documents, texts that were cut before, and documents met before."""
        for number, row in self._rows(shard):
            if "text" in row:
                yield AugmentedText.from_json(row["text"])
                continue
            document = Document.from_json(row["document"])
            if self._is_duplicate(number):
                yield Drop(row["where"], DUPLICATE, f"the id {document.id!r} came before")
            elif self._is_chosen(document.id):
                yield document

    def document_rows(self) -> Iterator[dict[str, Any]]:
        """Every document that was read, chosen or not, but for those met before; in order."""
        for shard in range(self.shards):
            for number, row in self._rows(shard):
                if not self._is_duplicate(number):
                    yield row["document"]

    def _rows(self, shard: int) -> Iterator[tuple[int, dict[str, Any]]]:
        first = shard * int(self.plan["shard_documents"])
        return enumerate(read_jsonl(_shard_file(self.root, shard)), first)

    @cached_property
    def _duplicates(self) -> np.ndarray:
        path = self.root / "documents" / "duplicates.npy"
        found: np.ndarray = np.load(path, mmap_mode="r") if path.exists() else np.empty(0, np.int64)
        return found

    def _is_duplicate(self, number: int) -> bool:
        place = int(np.searchsorted(self._duplicates, number))
        return place < len(self._duplicates) and int(self._duplicates[place]) == number

    def _is_chosen(self, identifier: str) -> bool:
        last = self.plan["last_draw"]
        return last is None or draw(self.plan["seed"], identifier, AXIS) <= last

    def remove(self) -> None:
        """At once: a kill on the way leaves nothing that looks like a run on its way."""
        sweep(self.root)
        with suppress(FileNotFoundError):  # another process has, where there are no locks
            self.root.rename(_removed(self.root))
        sweep(self.root)


def sweep(root: Path) -> None:
    """Takes away what a kill has left of a folder that was being removed."""
    shutil.rmtree(_removed(root), ignore_errors=True)


def _removed(root: Path) -> Path:
    return root.with_name(root.name + ".removed")


def begin(root: Path, inputs: Sequence[Path | str], settings: SynthesizeSettings, identity: Mapping[str, Any]) -> Work:
    """The folder of a run, filled from the inputs unless it is already; one process at a time does that.

    One in which nothing has been made yet, of a plan or of inputs without a document, is filled anew where it has
    another identity.

    Raises:
        UserError: it was begun with other settings or inputs.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(root.with_name(root.name + ".lock")):
        found = opened(root)
        unlike = [] if found is None else differing(found.plan["identity"], identity)
        if found is None or (unlike and found.is_untouched):
            return _filled(root, inputs, settings, identity)
    if unlike == [INPUT_FILES]:
        logger.warning(
            "%s: the inputs lie elsewhere or are of another time; what was read of them is gone on with", root
        )
    elif unlike:
        problem = f"was begun with another {', '.join(unlike)}"
        raise UserError(root, problem, "give what it was begun with, or remove that folder to begin anew")
    return found


def opened(root: Path) -> Work | None:
    """The folder of a run that is on its way, if there is one."""
    path = root / "plan.json"
    if not path.exists():
        return None
    plan = orjson.loads(path.read_bytes())
    if plan.get("format") != FORMAT:
        raise UserError(root, f"is of format {plan.get('format')}, this is {FORMAT}", "remove that folder")
    return Work(root, plan)


def is_under_way(root: Path, identity: Mapping[str, Any] | None = None) -> bool:
    """Whether a run has begun shards in that folder; one of that identity, if it is given."""
    found = opened(root)
    if found is None or found.is_untouched:
        return False
    return identity is None or set(differing(found.plan["identity"], identity)) <= {INPUT_FILES}


def begin_with_texts(
    root: Path, texts: Sequence[AugmentedText], settings: SynthesizeSettings, identity: Mapping[str, Any]
) -> Work:
    """A folder for texts that were cut before, to be asked about again; the one that is there if it is of just this."""
    found = opened(root)
    if found is not None and found.plan.get("retry") == identity:
        return found
    shutil.rmtree(root, ignore_errors=True)
    size = settings.shard_documents
    for shard, start in enumerate(range(0, len(texts), size)):
        rows = ({"text": text.to_json()} for text in texts[start : start + size])
        write_jsonl(_shard_file(root, shard), rows)
    shards = -(-len(texts) // size)
    plan = {"format": FORMAT, "retry": identity, "shards": shards, "shard_documents": size}
    write_json(root / "plan.json", {**plan, "last_draw": None, "seed": settings.seed})
    return Work(root, plan)


def _shard_file(root: Path, shard: int) -> Path:
    return root / "documents" / f"{shard:05}.jsonl.zst"


def _filled(
    root: Path, inputs: Sequence[Path | str], settings: SynthesizeSettings, identity: Mapping[str, Any]
) -> Work:
    """Fills a folder of this process alone and renames it: where the file system has no locks, several may do so."""
    prefix = f"{root.name}.filling.{socket.gethostname()}."
    for path in root.parent.glob(f"{glob.escape(prefix)}*"):
        if not is_alive(int(path.name.removeprefix(prefix).partition(".")[0])):  # it was killed
            shutil.rmtree(path, ignore_errors=True)
    own = root.with_name(f"{prefix}{os.getpid()}.{uuid.uuid4().hex}")
    try:
        _fill(own, inputs, settings, identity)
        found = opened(root)
        if found is None or differing(found.plan["identity"], identity):
            shutil.rmtree(root, ignore_errors=True)
            own.rename(root)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was first, with the same
            raise
    finally:
        shutil.rmtree(own, ignore_errors=True)
    found = opened(root)
    assert found is not None
    return found


def _fill(
    root: Path, inputs: Sequence[Path | str], settings: SynthesizeSettings, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Reads the inputs once; returns the plan, which it writes last."""
    folder = root / "documents"
    folder.mkdir(parents=True)
    dropped: Counter[str] = Counter()
    chosen = _Smallest(settings.documents)
    count = shards = 0
    waiting: list[dict[str, Any]] = []
    with Duplicates(root / "ids") as seen, (folder / "dropped.jsonl").open("wb") as stream:
        for where, item in read_placed(inputs, settings):
            if isinstance(item, Drop):
                dropped[item.reason] += 1
                stream.write(json_line(asdict(item)))
                continue
            seen.add(item.id, item.text)
            chosen.add(draw(settings.seed, item.id, AXIS))
            waiting.append({"where": where, "document": item.to_json()})
            count += 1
            if len(waiting) == settings.shard_documents:
                write_jsonl(_shard_file(root, shards), waiting)
                shards, waiting = shards + 1, []
        if waiting:
            write_jsonl(_shard_file(root, shards), waiting)
            shards += 1
        duplicates = np.sort(np.fromiter((repeat.ordinal for repeat in seen.repeats()), np.int64))
    np.save(folder / "duplicates.npy", duplicates)
    if len(duplicates):
        dropped[DUPLICATE] += len(duplicates)
    plan = {
        "format": FORMAT,
        "identity": identity,
        "shards": shards,
        "shard_documents": settings.shard_documents,
        "rows": count + sum(dropped.values()) - len(duplicates),
        "documents": count - len(duplicates),
        "dropped": dict(dropped),
        "last_draw": chosen.last(),
        "seed": settings.seed,
    }
    write_json(root / "plan.json", plan)
    return plan


class _Smallest:
    """The `count`-th smallest of many distinct draws, in memory for about twice as many; None takes all."""

    def __init__(self, count: int | None) -> None:
        self._count = count
        self._kept = np.empty(0, np.uint64)
        self._new: list[int] = []

    def add(self, value: int) -> None:
        if self._count is not None:
            self._new.append(value)
            if len(self._new) > max(self._count, 1 << 16):
                self._prune()

    def _prune(self) -> None:
        merged = np.unique(np.concatenate([self._kept, np.array(self._new, np.uint64)]))
        self._kept, self._new = merged[: self._count], []

    def last(self) -> int | None:
        """The largest draw that is chosen; None where all are."""
        if self._count is None:
            return None
        self._prune()
        return int(self._kept[-1]) if len(self._kept) else None


def work_folder(out: Path) -> Path:
    return beside(out, "work")
