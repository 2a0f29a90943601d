"""Sample i of a run as a function of i alone: the whole data path, without torch.

    BlendStream(blend.json).sample(i)          training: the blend decides which source and sequence
    SequentialStream(prefix, length).sample(k) validation: the tokens of one dataset in their order
    ValidationStream(blend, source).sample(k)  validation: the documents of a source that a split sets apart

Any i from 0 on may be asked for, in any order, from any process: nothing is consumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from data_prep.blend import Blend, open_source, read_blend
from data_prep.blend.file import BlendSource, open_validation
from data_prep.errors import UserError
from data_prep.indexing.reader import IndexedDatasetReader, open_dataset
from data_prep.packing import PackTable, Piece
from megatron_ipt.data.policy import Counted


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence.  All arrays are [seq_length]: loss_mask float32, the others int64.

    `labels[t]` is the token after `tokens[t]`; `loss_mask` is 1 where that label counts: not in padding, not where the
    source's loss policy leaves it out, and under the policy `chains` not where a label is of another piece than its
    input, unless the two follow each other in one document.  `segments` numbers the runs of one document, 0, 1, 2, ...;
    padding is one of its own.  `position_ids` are places in the sequence, or in the segment.  `pieces` are the parts of
    documents inside, the last label included; `source_index` is the source's place in the blend.
    """

    tokens: np.ndarray
    labels: np.ndarray
    loss_mask: np.ndarray
    position_ids: np.ndarray
    source: str
    pieces: tuple[Piece, ...]
    segments: np.ndarray
    source_index: int = 0


@dataclass(frozen=True, slots=True)
class _Source:
    """A source as it is read: `counted` is None where every label counts, `chained` says that pieces are apart."""

    name: str
    reader: IndexedDatasetReader
    table: PackTable
    counted: Counted | None
    chained: bool


class BlendStream:
    """The samples of a blend.  `sample(i)` costs some tens of microseconds for any i."""

    def __init__(self, blend_path: Path, *, reset_position_ids: bool = False) -> None:
        """`reset_position_ids`: positions restart with each document (Megatron's name).

        Errors: a UserError naming a file that is missing, damaged, or written after the blend was planned, and a source
        whose loss policy needs the spans that it does not have.
        """
        self.blend = read_blend(Path(blend_path))
        with ThreadPoolExecutor(max_workers=4) as pool:  # opening hashes the ends of the files
            self._sources = list(pool.map(_open, self.blend.sources))
        self._reset = reset_position_ids

    @property
    def blend_hash(self) -> str:
        """With the number of samples consumed, all of a checkpoint's data state."""
        return self.blend.hash

    @property
    def seq_length(self) -> int:
        return self.blend.seq_length

    def sample(self, index: int) -> Sample:
        """Sample `index` of the run.  Errors: an IndexError below 0."""
        place = self.blend.locate(index)
        source = self._sources[place.source]
        pieces = source.table.pieces(place.sequence)
        tokens = np.concatenate([source.reader.read(piece.document, piece.offset, piece.length) for piece in pieces])
        counts = source.counted.of(pieces) if source.counted is not None else np.ones(len(tokens), bool)
        if source.chained:
            counts[_breaks(pieces)] = False
        padding = self.blend.tokenizer.eod_id or 0
        return _sample(tokens, counts, self.seq_length, padding, pieces, self._reset, source.name, place.source)


def _open(source: BlendSource) -> _Source:
    reader, table = open_source(source)
    counted = None if source.loss == "all" else Counted(source.prefix, source.name, source.loss)
    return _Source(source.name, reader, table, counted, source.policy == "chains")


class SequentialStream:
    """A dataset from its first token to its last, cut into sequences: `len(stream)` samples.

    Each token but the very first is a label exactly once, so that summed losses over `text_bytes`
    give bits per byte.
    """

    def __init__(
        self, prefix: Path, seq_length: int, name: str | None = None, *, reset_position_ids: bool = False
    ) -> None:
        """Errors: a UserError naming a file that is missing or damaged, or a dataset without a label."""
        prefix = Path(prefix)
        manifest, self._reader = open_dataset(prefix)
        if manifest.tokens < 2:
            raise UserError(prefix, "a dataset of one token has nothing to predict", "give more text")
        self.seq_length, self.name, self.prefix = seq_length, name or prefix.name, prefix
        self.text_bytes, self.tokens = manifest.text_bytes, manifest.tokens
        self.tokenizer, self.data_hash, self._reset = manifest.tokenizer, manifest.data_hash, reset_position_ids
        self._ends = np.cumsum(self._reader.document_lengths())

    def __len__(self) -> int:
        return -(-(self.tokens - 1) // self.seq_length)

    def sample(self, index: int) -> Sample:
        """Sequence `index` of the dataset.  Errors: an IndexError outside [0, len(self))."""
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        start = index * self.seq_length
        pieces = self._pieces(start, min(start + self.seq_length + 1, self.tokens))
        tokens = np.concatenate([self._reader.read(piece.document, piece.offset, piece.length) for piece in pieces])
        counts, padding = np.ones(len(tokens), bool), self.tokenizer.eod_id or 0
        return _sample(tokens, counts, self.seq_length, padding, pieces, self._reset, self.name)

    def _pieces(self, start: int, stop: int) -> list[Piece]:
        """The parts of documents that tokens [start, stop) of the dataset are."""
        pieces = []
        document = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            end = int(self._ends[document])
            begin = int(self._ends[document - 1]) if document else 0
            if length := min(end, stop) - start:
                pieces.append(Piece(document, start - begin, length))
            start, document = start + length, document + 1
        return pieces


class ValidationStream:
    """The documents of a source that its blend's split sets apart, back to back in the order of their pack table.

    It is read as a `SequentialStream` is.
    """

    def __init__(self, blend: Blend, source: BlendSource, *, reset_position_ids: bool = False) -> None:
        """Errors: a UserError naming a file that is missing, damaged, or written after the blend was planned."""
        assert source.validation is not None
        self._reader, self._table = open_validation(source)
        self.seq_length, self.name, self.prefix = blend.seq_length, source.name, source.prefix
        self.text_bytes, self.tokens = source.validation.text_bytes, source.validation.tokens
        self.tokenizer, self._reset = blend.tokenizer, reset_position_ids

    def __len__(self) -> int:
        return self._table.sequences

    def sample(self, index: int) -> Sample:
        """Sequence `index` of the set.  Errors: an IndexError outside [0, len(self))."""
        pieces = self._table.pieces(index)
        tokens = np.concatenate([self._reader.read(piece.document, piece.offset, piece.length) for piece in pieces])
        counts, padding = np.ones(len(tokens), bool), self.tokenizer.eod_id or 0
        return _sample(tokens, counts, self.seq_length, padding, pieces, self._reset, self.name)


HeldOut = SequentialStream | ValidationStream


def _sample(
    tokens: np.ndarray,
    counts: np.ndarray,
    seq_length: int,
    padding: int,
    pieces: Sequence[Piece],
    reset: bool,
    source: str,
    source_index: int = 0,
) -> Sample:
    """Inputs and labels of at most seq_length + 1 tokens; the rest is padding, masked by place and not by id."""
    padded = np.full(seq_length + 1, padding, np.int64)
    padded[: len(tokens)] = tokens
    loss_mask = np.zeros(seq_length, np.float32)
    loss_mask[: len(tokens) - 1] = counts[1:]
    segments = _segments(pieces, seq_length)
    positions = np.arange(seq_length)
    if reset:
        positions -= np.searchsorted(segments, segments)
    return Sample(padded[:-1], padded[1:].copy(), loss_mask, positions, source, tuple(pieces), segments, source_index)


def _segments(pieces: Sequence[Piece], seq_length: int) -> np.ndarray:
    """The number of the document that each input is of, int64 [seq_length].

    Pieces of one document in their order are one segment, even with a gap: later pairs stand there with their text.
    """
    numbers, number, document, end = [], -1, -1, 0
    for piece in pieces:
        if piece.document != document or piece.offset < end:
            number += 1
        numbers.append(number)
        document, end = piece.document, piece.offset + piece.length
    found = np.full(seq_length + 1, number + 1, np.int64)
    runs = np.repeat(numbers, [piece.length for piece in pieces])
    found[: len(runs)] = runs
    return found[:-1]


def _breaks(pieces: Sequence[Piece]) -> list[int]:
    """Places of the tokens that do not follow in their document the token before them."""
    places, place = [], 0
    for before, piece in pairwise(pieces):
        place += before.length
        if piece.document != before.document or piece.offset != before.offset + before.length:
            places.append(place)
    return places
