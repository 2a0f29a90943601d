"""The pack table: which pieces of which documents make up each sequence of a dataset.

    pack(prefix, manifest, spec) -> PackTable     the one on disk if there is one, else built in one pass over the .idx

Documents enter in a seeded order (documents.py).  Policy `concatenate` is Megatron's (concatenate.py); `chains` keeps
questions with their texts (chains.py, by best fit: window.py; cut at units.py), side by side over stretches of that
order (stretches.py).  With a split (splits.py) a table holds the documents of one side.

The table depends on the dataset and the spec, on nothing of a run; their hash is in its name, `PREFIX.pack-<hash>`
(table.py).  The lineage counts as part of the dataset where it is read: with a split, since ids say on which side
documents are, and by policy `chains`, since it tells which text a pair is about (pair_order.py).  Building streams:
memory grows by a byte a document where there is a split, by eight for each document whose pairs come first as only the
lineage tells, else not at all, besides the pages of the .idx.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep.errors import UserError
from data_prep.indexing.reader import IndexedDatasetReader
from data_prep.indexing.spans import SpansReader
from data_prep.locks import one_at_a_time
from data_prep.manifest import Manifest, content_hash
from data_prep.packing.concatenate import concatenate
from data_prep.packing.documents import documents_in_order
from data_prep.packing.pair_order import pair_order
from data_prep.packing.splits import MIXED, SIDES, Side, sides_of
from data_prep.packing.stretches import ChainsTask, pack_chains
from data_prep.packing.table import PACK_FORMAT_VERSION, PackReport, PackTable, PackWriter, Piece, open_pack
from data_prep.settings import SplitSettings

__all__ = [
    "BOTH_SIDES",
    "OTHER_SIDE",
    "SIDES",
    "PackReport",
    "PackSpec",
    "PackTable",
    "Piece",
    "Side",
    "lineage_read",
    "open_pack",
    "pack",
    "pack_path",
]

PackPolicy = Literal["concatenate", "chains"]

OTHER_SIDE, BOTH_SIDES = "documents of the other side of the split", "documents of raw documents of both sides"


@dataclass(frozen=True, slots=True)
class PackSpec:
    """What a pack table depends on besides its dataset.  With a split, the table is of one `side` of it."""

    seq_length: int
    seed: int
    policy: PackPolicy = "concatenate"
    split: SplitSettings | None = None
    side: Side = "train"


def pack_path(prefix: Path, manifest: Manifest, spec: PackSpec) -> Path:
    """PREFIX.pack-<hash of all that the table depends on>."""
    content = {**asdict(spec), "split": spec.split and spec.split.model_dump()}
    depends_on = {"format_version": PACK_FORMAT_VERSION, "data": manifest.data_hash, **content}
    if lineage := lineage_read(manifest, spec):
        depends_on["lineage"] = lineage
    return prefix.with_name(f"{prefix.name}.pack-{content_hash(depends_on)[:16]}")


def lineage_read(manifest: Manifest, spec: PackSpec) -> str | None:
    """Hash of the lineage that the table is made from; None where it is made without."""
    return manifest.lineage_hash if spec.split or (spec.policy == "chains" and manifest.spans) else None


def pack(prefix: Path, manifest: Manifest, spec: PackSpec, workers: int = 0) -> PackTable:
    """The pack table of a dataset; policy `chains` packs on as many `workers`, and 0 is this process.

    While another process builds the same table, this one waits for it.
    Errors: a UserError for a dataset without a label to predict, a split by a lineage that is missing or damaged, and
    a damaged table.
    """
    if spec.split and manifest.lineage is None:
        problem = "it has no lineage, so a split cannot tell which documents it sets apart"
        raise UserError(prefix, problem, "write it with `ipt data index`, or plan without a split")
    path = pack_path(prefix, manifest, spec)
    if not path.exists():
        with one_at_a_time(path.with_name(path.name + ".lock")):
            if not path.exists():
                _build(prefix, manifest, spec, path, workers)
    return open_pack(path, check_bytes=True)


def _build(prefix: Path, manifest: Manifest, spec: PackSpec, path: Path, workers: int) -> None:
    reader = IndexedDatasetReader(prefix)
    dropped: dict[str, int] = {}
    sides = sides_of(prefix, spec.split) if spec.split else None
    if sides is not None:
        wanted = SIDES.index(spec.side)
        dropped[BOTH_SIDES] = int((sides == MIXED).sum())
        dropped[OTHER_SIDE] = int((sides == 1 - wanted).sum())
        sides = sides == wanted
    with PackWriter(path) as writer:
        if spec.policy == "chains":
            order = None
            if has_spans := _has_spans(prefix, manifest):
                order = pair_order(prefix, SpansReader(prefix), manifest.lineage is not None)
            task = ChainsTask(prefix, has_spans, spec.seq_length, spec.seed, sides, path, order=order)
            report = pack_chains(task, reader.documents, writer, workers)
        else:
            report = _concatenate(documents_in_order(reader, spec.seed, sides), spec, writer)
        if not writer.sequences:
            side = f" on the {spec.side} side of the split" if spec.split else ""
            raise UserError(prefix, f"nothing to predict{side}: no two tokens follow each other", "leave it out")
        found = {reason: count for reason, count in {**dropped, **report.dropped}.items() if count}
        writer.finish(report.model_copy(update={"dropped": found}))


def _concatenate(documents: Iterator[tuple[np.ndarray, np.ndarray]], spec: PackSpec, writer: PackWriter) -> PackReport:
    count = tokens = 0

    def counted() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal count, tokens
        for numbers, lengths in documents:
            count, tokens = count + int((lengths > 0).sum()), tokens + int(lengths.sum())
            yield numbers, lengths

    for counts, rows in concatenate(counted(), spec.seq_length):
        writer.add(counts, rows)
    # Each sequence but the first repeats the last label of the one before.
    padding = writer.sequences * spec.seq_length - max(0, tokens - 1)
    return PackReport(documents=count, tokens=tokens, labels=max(0, tokens - 1), padding=padding)


def _has_spans(prefix: Path, manifest: Manifest) -> bool:
    if not manifest.spans and manifest.settings.get("spans") is False:
        problem = "it was indexed without spans, so policy chains cannot tell its questions from its texts"
        raise UserError(prefix, problem, "index it again with spans, or pack it with policy concatenate")
    return manifest.spans is not None
