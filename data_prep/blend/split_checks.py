"""Where a split would be without effect: sources that cannot be held together by the ids of their raw documents.

| what is found | answer |
|---|---|
| `copy_of` names a raw source, and no raw document's id is in both | refused |
| an augmented source, none of whose raw documents is in a raw source | note: right where the texts are others |
| documents that are known by file and line, beside other sources | note |
| documents of an augmented source that name no raw document | note |

A text that stands in two sources under unlike ids may be on both sides; nothing but its ids is looked at here.
Memory: eight bytes a raw text of the augmented sources.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from data_prep.blend.model import Blend, BlendSource
from data_prep.errors import UserError
from data_prep.indexing.lineage import lineage_groups
from data_prep.settings import BlendSettings

_GIVE_IDS = "give each row the `id` of its document, in all sources alike"


def split_notes(blend: Blend, settings: BlendSettings) -> tuple[str, ...]:
    """Sources over which the split does not reach.  Errors: a UserError for a declared copy that shares no id."""
    raw = [source for source in blend.sources if source.kind == "raw"]
    augmented = [source for source in blend.sources if source.kind == "augmented"]
    found, ids = [], {}
    for source in augmented:
        ids[source.name], unmade = _ids_of(source.prefix)
        if unmade:
            told = f"{unmade:,} documents of '{source.name}' name no raw document, and are trained on"
            found.append(f"split: {told}; index what `ipt data render` writes")
    shared: set[tuple[str, str]] = set()
    for source in raw:
        unnamed = 0
        for group in lineage_groups(source.prefix):
            unnamed += _by_line(group)
            hashes = _hashes(group)
            for name, those in ids.items():
                if (name, source.name) not in shared and np.isin(hashes, those).any():
                    shared.add((name, source.name))
        if unnamed and len(blend.sources) > 1:
            told = f"{unnamed:,} documents of '{source.name}' have no id but their file and line"
            found.append(f"split: {told}: a copy in another source is not set apart with them; {_GIVE_IDS}")
    if raw:
        found += [told for source in augmented if (told := _apart(source, shared, settings))]
    return tuple(found)


def _apart(source: BlendSource, shared: set[tuple[str, str]], settings: BlendSettings) -> str:
    """A note for an augmented source that has no raw document in common with a raw one."""
    copy_of = settings.sources[source.name].copy_of
    if copy_of is not None and (source.name, copy_of) not in shared:
        told = f"no raw document of it is in '{copy_of}' by its id, so the split would train on what it sets apart"
        raise UserError(f"sources.{source.name}.copy_of", told, f"{_GIVE_IDS}; or plan without a split")
    if any(name == source.name for name, _ in shared):
        return ""
    told = f"no raw document of '{source.name}' is in a raw source by its id"
    return f"split: {told}: right if its texts are others, else its copies are on other sides; {_GIVE_IDS}"


def _ids_of(prefix: Path) -> tuple[np.ndarray, int]:
    """Hashes of the raw documents' ids, each once and rising; and the documents that name none."""
    found, unmade = [np.empty(0, np.uint64)], 0
    for group in lineage_groups(prefix):
        unmade += int(pc.sum(pc.equal(pc.list_value_length(group["origins"]), 0)).as_py() or 0)
        found.append(np.unique(_hashes(group)))
    return np.unique(np.concatenate(found)), unmade


def _hashes(group: pa.Table) -> np.ndarray:
    ids = pc.struct_field(pc.list_flatten(group["origins"]), "document_id").to_pylist()
    return np.fromiter((xxhash.xxh3_64_intdigest(name.encode()) for name in ids), np.uint64, len(ids))


def _by_line(group: pa.Table) -> int:
    """Documents whose id is the name of their file and a line, as rows without an id get it."""
    names = zip(group["id"].to_pylist(), group["source_file"].to_pylist(), strict=True)
    return sum(name.startswith(f"{file}:") and name[len(file) + 1 :].isdigit() for name, file in names)
