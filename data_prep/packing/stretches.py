"""Policy `chains` over stretches of the document order, each packed by itself, side by side on several processors.

A stretch is a fixed number of documents, so that the table does not depend on who packed what.  Each is a pack table of
its own, PREFIX.pack-<hash>.part-<number>, done when it is in place: a run that was killed goes on with the others.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.errors import UserError
from data_prep.indexing.reader import IndexedDatasetReader
from data_prep.indexing.spans import SpansReader
from data_prep.packing.chains import ChainPacker
from data_prep.packing.documents import documents_in_order
from data_prep.packing.pair_order import PairOrder
from data_prep.packing.table import PackReport, PackTable, PackWriter, open_pack
from data_prep.shards import run_tasks

# Documents of a stretch: its last sequences are filled less well, so there should be many.
STRETCH = 1 << 20


@dataclass(frozen=True, slots=True)
class ChainsTask:
    """What packing depends on: a dataset, which of its documents are `wanted` (None: all), and how many go together.

    `order` tells of documents what their spans do not.
    """

    prefix: Path
    has_spans: bool
    seq_length: int
    seed: int
    wanted: np.ndarray | None
    path: Path
    stretch: int = STRETCH
    order: PairOrder | None = None

    def part(self, number: int) -> Path:
        """Where a stretch is written."""
        return self.path.with_name(f"{self.path.name}.part-{number:05}")


def pack_chains(task: ChainsTask, documents: int, writer: PackWriter, workers: int = 0) -> PackReport:
    """Packs all `documents` of a dataset by policy `chains`, on as many `workers`; 0 is this process."""
    stretches = range(-(-documents // task.stretch))
    if len(stretches) <= 1:
        return _Packer(task).into(writer, 0)
    for _ in run_tasks(partial(_Packer, task), stretches, workers):
        pass
    reports = []
    for number in stretches:
        table = open_pack(task.part(number))
        writer.add(np.diff(table.starts), table.rows)
        reports.append(table.report)
    for number in stretches:
        task.part(number).unlink()
    return _sum(reports)


class _Packer:
    """Packs stretches of a dataset, in one process."""

    def __init__(self, task: ChainsTask) -> None:
        self._task = task
        self._reader = IndexedDatasetReader(task.prefix)
        self._spans = SpansReader(task.prefix) if task.has_spans else None

    def __call__(self, number: int) -> int:
        path = self._task.part(number)
        if _whole(path) is None:
            with PackWriter(path) as writer:
                writer.finish(self.into(writer, number))
        return number

    def into(self, writer: PackWriter, number: int) -> PackReport:
        """Writes the sequences of a stretch."""
        task, documents = self._task, self._reader.documents
        packer = ChainPacker(task.seq_length, self._spans, writer, order=task.order)
        start, stop = number * task.stretch, min((number + 1) * task.stretch, documents)
        packer.add(documents_in_order(self._reader, task.seed, task.wanted, start, stop))
        return packer.finish()


def _whole(path: Path) -> PackTable | None:
    try:
        return open_pack(path, check_bytes=True) if path.exists() else None
    except UserError:
        return None  # a power cut may have torn it


def _sum(reports: list[PackReport]) -> PackReport:
    told = [report.model_dump() for report in reports]
    dropped = sum((Counter(report.dropped) for report in reports), Counter[str]())
    counts = {name: sum(one[name] for one in told) for name in PackReport.model_fields if name != "dropped"}
    return PackReport(**counts, dropped=dict(dropped))
