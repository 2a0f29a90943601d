"""The same raw text in two datasets, found by the lineage of their documents.

A text is a stretch [start, end) of a document (id, source): `ipt data render` may leave one piece of a long document
raw and augment another, which is no copy.  Memory: the ids of the smaller dataset, and CHUNK rows of the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.indexing.layout import lineage_path
from data_prep.indexing.lineage import lineage_groups
from data_prep.manifest import read_manifest

CHUNK = 1 << 22
"""Texts of the larger dataset that are looked up at once."""


def count_texts(prefix: Path) -> int:
    """Raw texts that stand in the documents of a dataset; 0 where it has no lineage."""
    return sum(texts.num_rows for texts in _texts(prefix))


def count_common(one: Path, other: Path, named: bool = False) -> int | None:
    """Raw texts of the smaller dataset that stand in the other too; None where one of them has no lineage.

    `named` counts those too that a closed book is about: pairs tell of a text that is nowhere to be read.
    """
    if not (_rows(one) and _rows(other)):
        return None
    small, large = sorted((one, other), key=_rows)
    known = [texts.append_column("row", pa.array(np.arange(texts.num_rows))) for texts in _texts(small, named)]
    if not known:
        return 0
    # Rows are numbered over all chunks, so that a text found twice counts once.
    first, numbered = 0, []
    for texts in known:
        numbered.append(texts.set_column(5, "row", pc.add(texts["row"], first)))
        first += texts.num_rows
    table = pa.concat_tables(numbered).combine_chunks()
    found: list[pa.ChunkedArray] = []
    for texts in _texts(large, named):
        near = texts.filter(pc.is_in(texts["document_id"], value_set=table["document_id"].combine_chunks()))
        if near.num_rows:
            both = table.join(near, ["document_id", "source"], join_type="inner", right_suffix="_there")
            overlap = pc.and_(pc.less(both["start"], both["end_there"]), pc.less(both["start_there"], both["end"]))
            found.append(both.filter(overlap)["row"])
    return len(pc.unique(pa.chunked_array([chunk for rows in found for chunk in rows.chunks], pa.int64())))


def _rows(prefix: Path) -> int:
    """Documents with a lineage that the manifest vouches for; datasets of other writers have none."""
    return int(pq.read_metadata(lineage_path(prefix)).num_rows) if read_manifest(prefix).lineage else 0


def _texts(prefix: Path, named: bool = False) -> Iterator[pa.Table]:
    """document_id, source, start, end, at of each raw text that stands in a document (or is named), some at a time."""
    if not _rows(prefix):
        return
    waiting: list[pa.Table] = []
    for group in lineage_groups(prefix):
        texts = _flat(group, named)
        waiting.append(texts)
        if sum(table.num_rows for table in waiting) >= CHUNK:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _flat(group: pa.Table, named: bool) -> pa.Table:
    origins = pc.list_flatten(group["origins"])
    names = ("document_id", "source", "start", "end", "at")
    table = pa.table({name: pc.struct_field(origins, name) for name in names})
    if not named:  # a closed book names the text it is about, and does not hold it
        table = table.filter(pc.greater_equal(table["at"], 0))
    # An unknown end (-1, or that of an origin without a stretch) reaches to the end of the document.
    end = pc.if_else(pc.less_equal(table["end"], table["start"]), pa.scalar((1 << 62), pa.int64()), table["end"])
    return table.set_column(3, "end", end)
