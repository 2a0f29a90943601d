"""Reads PREFIX.bin and PREFIX.idx through memory maps, as any writer of Megatron's format leaves them.

Header and sizes are checked on opening; `check_layout` goes through every offset.  What is read in between is checked
where it is used, so that no file, whoever wrote it, leads outside of itself.  An array handed out keeps its map alive,
so it may outlive the reader (Megatron's own reader crashes there).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.errors import UserError
from data_prep.indexing.layout import (
    DTYPES,
    HEADER,
    IDX_VERSION,
    MAGIC,
    bin_path,
    forget_pages,
    idx_path,
    lineage_path,
    map_file,
    spans_path,
)
from data_prep.manifest import Manifest, read_manifest

_MEND = "write the dataset again with `ipt data index`"

# What a pass over a dataset takes at once [documents, tokens], and of the .idx alone [entries].
_DOCUMENTS, _TOKENS = 1 << 14, 1 << 20
_ENTRIES = 1 << 20


class IndexedDatasetReader:
    """The documents of one dataset.

    A document is one Megatron document: mostly one sequence, or several that follow each other.
    `documents` and `tokens` are counts, `dtype` is that of the .idx.  Its arrays go by Megatron's names:
    `sequence_lengths` [tokens], `sequence_pointers` [bytes], and `document_indices` [sequences].
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
        self.sequence_lengths = body[: 4 * sequences].view("<i4")
        self.sequence_pointers = body[4 * sequences : 12 * sequences].view("<i8")
        self.document_indices = body[12 * sequences :].view("<i8")
        if self.document_indices[0] != 0 or self.document_indices[-1] != sequences:
            raise UserError(idx, f"its documents do not cover its {sequences} sequences", _MEND)
        self._ids = self._map_ids()
        self.tokens = len(self._ids)

    def _map_ids(self) -> np.ndarray:
        path = bin_path(self.prefix)
        raw = map_file(path)
        expected = 0
        if len(self.sequence_lengths):
            expected = int(self.sequence_pointers[-1]) + int(self.sequence_lengths[-1]) * self.dtype.itemsize
        if len(raw) != expected or expected % self.dtype.itemsize:
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
        """Tokens of documents [start, stop), by default of all: int64.

        Errors: a UserError naming the .idx and a document that it does not describe.
        """
        boundaries = self.document_indices[start : (self.documents if stop is None else stop) + 1]
        sequences = len(self.sequence_lengths)
        wrong = np.flatnonzero(
            (boundaries[1:] < boundaries[:-1]) | (boundaries[:-1] < 0) | (boundaries[1:] > sequences)
        )
        if wrong.size:
            raise self._fault(f"document {start + wrong[0]} ends before it starts")
        lengths = self.sequence_lengths[boundaries[0] : boundaries[-1]]
        if lengths.min(initial=0) < 0:
            raise self._fault(f"sequence {int(boundaries[0]) + int(np.argmin(lengths))} is of a negative length")
        totals = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        if len(boundaries) > self.documents and totals[-1] != self.tokens:
            raise self._fault(f"its lengths sum to {totals[-1]} tokens, and the .bin has {self.tokens}")
        return np.diff(totals[boundaries - boundaries[0]])

    def lengths_of(self, documents: np.ndarray) -> np.ndarray:
        """Tokens of some documents in any order: int64, shaped as `documents`.

        Errors: a UserError naming the .idx and a document that it does not describe; IndexError outside.
        """
        first, after = self.document_indices[documents], self.document_indices[documents + 1]
        if len(first) and (first.min() < 0 or after.max() > len(self.sequence_lengths)):
            raise self._fault("a document lies outside of its sequences")
        lengths = np.zeros(len(documents), np.int64)
        single = after - first == 1
        lengths[single] = self.sequence_lengths[first[single]]
        for place in np.flatnonzero(~single).tolist():
            number = int(documents[place])
            lengths[place] = self.document_lengths(number, number + 1)[0]
        if lengths.min(initial=0) < 0:
            raise self._fault(f"document {int(documents[np.argmin(lengths)])} is of a negative length")
        return lengths

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """(first document, lengths) of documents to work on at once, of [start, stop): about a million tokens."""
        stop = self.documents if stop is None else stop
        for first in range(start, stop, _DOCUMENTS):
            lengths = self.document_lengths(first, min(first + _DOCUMENTS, stop))
            place = 0
            while place < len(lengths):
                fit = max(1, int(np.searchsorted(np.cumsum(lengths[place:]), _TOKENS, side="right")))
                yield first + place, lengths[place : place + fit]
                place += fit

    def first_token(self, index: int) -> int:
        """Where a document starts in the .bin [tokens].  IndexError outside."""
        return self._bounds(index)[0]

    def forget_pages(self) -> None:
        """Lets go of the memory that a pass over the dataset took."""
        forget_pages(self.sequence_lengths)
        forget_pages(self._ids)

    def check_layout(self) -> None:
        """Goes through the whole .idx: sequences follow each other without gap, documents in order.

        Errors: a UserError naming the .idx and the first sequence or document at fault.
        """
        end, sequences = 0, len(self.sequence_lengths)
        for start in range(0, sequences, _ENTRIES):
            lengths = self.sequence_lengths[start : start + _ENTRIES].astype(np.int64) * self.dtype.itemsize
            ends = end + np.cumsum(lengths)
            pointers = self.sequence_pointers[start : start + _ENTRIES]
            wrong = np.flatnonzero((pointers != ends - lengths) | (lengths < 0))
            if wrong.size:
                raise self._fault(f"sequence {start + wrong[0]} does not follow the one before it")
            end = int(ends[-1])
            self.forget_pages()
        for start in range(0, self.documents, _ENTRIES):
            boundaries = self.document_indices[start : start + _ENTRIES + 1]
            wrong = np.flatnonzero(boundaries[1:] < boundaries[:-1])
            if wrong.size:
                raise self._fault(f"document {start + wrong[0]} ends before it starts")
            self.forget_pages()

    def _fault(self, problem: str) -> UserError:
        return UserError(idx_path(self.prefix), problem, _MEND)

    def _bounds(self, index: int) -> tuple[int, int]:
        """First token and the one after the last of a document, counted from the start of the .bin."""
        if not 0 <= index < self.documents:
            raise IndexError(f"document {index} of {self.documents}")
        first, after = int(self.document_indices[index]), int(self.document_indices[index + 1])
        if first == after:
            return 0, 0
        if not 0 <= first < after <= len(self.sequence_lengths):
            raise self._fault(f"document {index} ends before it starts")
        item = self.dtype.itemsize
        last_bytes = int(self.sequence_lengths[after - 1]) * item
        start, stop = int(self.sequence_pointers[first]), int(self.sequence_pointers[after - 1]) + last_bytes
        if not 0 <= start <= stop <= self.tokens * item or start % item or last_bytes < 0:
            raise self._fault(f"document {index} lies outside of the .bin")
        return start // item, stop // item


def open_dataset(prefix: Path, every_block: bool = False) -> tuple[Manifest, IndexedDatasetReader]:
    """A dataset with the manifest that vouches for it.

    Without `every_block` only sizes, header, and the first and last 64 MiB of .bin and .idx are held
    against the manifest, which is what opening can afford; with it all of all files (see `data_prep.indexing.verify`).
    Errors: a UserError naming the file that is missing, damaged, stale or foreign.
    """
    manifest = read_manifest(prefix)
    manifest.bin.check(bin_path(prefix), every_block)
    manifest.idx.check(idx_path(prefix), every_block)
    for hashes, path in ((manifest.lineage, lineage_path(prefix)), (manifest.spans, spans_path(prefix))):
        if hashes is not None and every_block:
            hashes.check(path, every_block)
        elif hashes is not None and path.exists():  # training does without them
            hashes.check_size(path)
    reader = IndexedDatasetReader(prefix)
    found = (reader.documents, reader.tokens, reader.dtype)
    if found != (manifest.documents, manifest.tokens, np.dtype(manifest.dtype)):
        raise UserError(idx_path(prefix), f"documents, tokens and dtype are {found}, unlike its manifest", _MEND)
    return manifest, reader
