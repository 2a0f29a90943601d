"""Reads PREFIX.bin and PREFIX.idx through memory maps, as any writer of Megatron's format leaves them.

Header and sizes are checked on opening; `check_layout` goes through every offset.  An array handed
out keeps its map alive, so it may outlive the reader (Megatron's own reader crashes there).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.errors import UserError
from data_prep.indexing.layout import (
    DTYPES,
    HEADER,
    IDX_VERSION,
    MAGIC,
    bin_path,
    idx_path,
    lineage_path,
    map_file,
    spans_path,
)
from data_prep.manifest import Manifest, read_manifest

_MEND = "write the dataset again with `ipt data index`"


class IndexedDatasetReader:
    """The documents of one dataset.

    A document is one Megatron document: mostly one sequence, or several that follow each other.
    `documents` and `tokens` are counts, `dtype` is that of the .idx.
    """

    def __init__(self, prefix: Path) -> None:
        """Errors: a UserError naming the file that is missing, of another format, cut short or too long."""
        self.prefix = prefix
        idx = idx_path(prefix)
        raw = map_file(idx)
        if len(raw) < HEADER.size:
            raise UserError(idx, f"{len(raw)} bytes are too few for a header", _MEND)
        magic, version, code, sequences, boundaries = HEADER.unpack(raw[: HEADER.size].tobytes())
        if magic != MAGIC or version != IDX_VERSION or code not in DTYPES or boundaries < 1:
            problem = f"not a Megatron index: magic {magic!r}, version {version}, dtype code {code}"
            raise UserError(idx, problem, _MEND)
        expected = HEADER.size + 12 * sequences + 8 * boundaries
        if len(raw) != expected:
            raise UserError(idx, f"{len(raw)} bytes where its header announces {expected}", _MEND)
        self.dtype = np.dtype(DTYPES[code])
        self.documents = boundaries - 1
        body = raw[HEADER.size :]
        self._lengths = body[: 4 * sequences].view("<i4")
        self._pointers = body[4 * sequences : 12 * sequences].view("<i8")
        self._boundaries = body[12 * sequences :].view("<i8")
        if self._boundaries[0] != 0 or self._boundaries[-1] != sequences:
            raise UserError(idx, f"its documents do not cover its {sequences} sequences", _MEND)
        self._ids = self._map_ids()
        self.tokens = len(self._ids)

    def _map_ids(self) -> np.ndarray:
        path = bin_path(self.prefix)
        raw = map_file(path)
        expected = int(self._pointers[-1]) + int(self._lengths[-1]) * self.dtype.itemsize if len(self._lengths) else 0
        if len(raw) != expected:
            raise UserError(path, f"{len(raw)} bytes where the .idx announces {expected}", _MEND)
        return raw.view(self.dtype)

    def document(self, index: int) -> np.ndarray:
        """Every token of a document, [length] of `dtype`: a read-only view of the map.  IndexError outside."""
        start, stop = self._bounds(index)
        return self._ids[start:stop]

    def read(self, index: int, offset: int, length: int) -> np.ndarray:
        """Tokens [offset, offset + length) of a document.  Errors: an IndexError if it is not that long."""
        start, stop = self._bounds(index)
        if offset < 0 or length < 0 or start + offset + length > stop:
            raise IndexError(f"tokens [{offset}, {offset + length}) of a document of {stop - start}")
        return self._ids[start + offset : start + offset + length]

    def document_lengths(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Tokens of documents [start, stop), by default of all: int64."""
        boundaries = self._boundaries[start : (self.documents if stop is None else stop) + 1]
        lengths = self._lengths[boundaries[0] : boundaries[-1]]
        totals = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        return np.diff(totals[boundaries - boundaries[0]])

    def check_layout(self) -> None:
        """Goes through the whole .idx: sequences follow each other without gap, documents in order.

        Errors: a UserError naming the .idx and the first sequence or document at fault.
        """
        ends = np.cumsum(self._lengths, dtype=np.int64) * self.dtype.itemsize
        starts = np.concatenate(([0], ends[:-1]))
        wrong = np.flatnonzero((self._pointers != starts) | (self._lengths < 0))
        if wrong.size:
            raise UserError(idx_path(self.prefix), f"sequence {wrong[0]} does not follow the one before it", _MEND)
        wrong = np.flatnonzero(np.diff(self._boundaries) < 0)
        if wrong.size:
            raise UserError(idx_path(self.prefix), f"document {wrong[0]} ends before it starts", _MEND)

    def _bounds(self, index: int) -> tuple[int, int]:
        """First token and the one after the last of a document, counted from the start of the .bin."""
        if not 0 <= index < self.documents:
            raise IndexError(f"document {index} of {self.documents}")
        first, after = int(self._boundaries[index]), int(self._boundaries[index + 1])
        if first == after:
            return 0, 0
        last_bytes = int(self._lengths[after - 1]) * self.dtype.itemsize
        start, stop = int(self._pointers[first]), int(self._pointers[after - 1]) + last_bytes
        return start // self.dtype.itemsize, stop // self.dtype.itemsize


def open_dataset(prefix: Path, every_block: bool = False) -> tuple[Manifest, IndexedDatasetReader]:
    """A dataset with the manifest that vouches for it.

    Without `every_block` only sizes, header, and the first and last 64 MiB of .bin and .idx are held
    against the manifest, which is what opening can afford; with it all of all files (see `data_prep.indexing.verify`).
    Errors: a UserError naming the file that is missing, damaged, stale or foreign.
    """
    manifest = read_manifest(prefix)
    manifest.bin.check(bin_path(prefix), every_block)
    manifest.idx.check(idx_path(prefix), every_block)
    if every_block:
        for hashes, path in ((manifest.lineage, lineage_path(prefix)), (manifest.spans, spans_path(prefix))):
            if hashes is not None:
                hashes.check(path, every_block)
    reader = IndexedDatasetReader(prefix)
    found = (reader.documents, reader.tokens, reader.dtype)
    if found != (manifest.documents, manifest.tokens, np.dtype(manifest.dtype)):
        raise UserError(idx_path(prefix), f"documents, tokens and dtype are {found}, unlike its manifest", _MEND)
    return manifest, reader
