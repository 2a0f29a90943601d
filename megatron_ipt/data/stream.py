"""Sample i of a run as a function of i alone: the whole data path, without torch.

    BlendStream(blend.json).sample(i)          training: the blend decides which source and sequence
    SequentialStream(prefix, length).sample(k) validation: the tokens of one dataset in their order

Any i from 0 on may be asked for, in any order, from any process: nothing is consumed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.blend import open_source, read_blend
from data_prep.errors import UserError
from data_prep.indexing.reader import open_dataset
from data_prep.packing import Piece


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence.  All arrays are [seq_length]: tokens, labels and position_ids int64, loss_mask float32.

    `labels[t]` is the token after `tokens[t]`; `loss_mask` is 0 where there is none (padding), else
    1.  `pieces` are the parts of documents inside, the last label included.
    """

    tokens: np.ndarray
    labels: np.ndarray
    loss_mask: np.ndarray
    position_ids: np.ndarray
    source: str
    pieces: tuple[Piece, ...]


class BlendStream:
    """The samples of a blend.  `sample(i)` costs some tens of microseconds for any i."""

    def __init__(self, blend_path: Path) -> None:
        """Errors: a UserError naming a file that is missing, damaged, or written after the blend was planned."""
        self.blend = read_blend(Path(blend_path))
        with ThreadPoolExecutor(max_workers=4) as pool:  # opening hashes the ends of the files
            self._sources = list(pool.map(open_source, self.blend.sources))

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
        reader, table = self._sources[place.source]
        pieces = table.pieces(place.sequence)
        tokens = np.concatenate([reader.read(piece.document, piece.offset, piece.length) for piece in pieces])
        padding = self.blend.tokenizer.eod_id or 0
        return _sample(tokens, self.seq_length, padding, self.blend.sources[place.source].name, pieces)


class SequentialStream:
    """A dataset from its first token to its last, cut into sequences: `len(stream)` samples.

    Each token but the very first is a label exactly once, so that summed losses over `text_bytes`
    give bits per byte.
    """

    def __init__(self, prefix: Path, seq_length: int, name: str | None = None) -> None:
        """Errors: a UserError naming a file that is missing or damaged, or a dataset without a label."""
        prefix = Path(prefix)
        manifest, self._reader = open_dataset(prefix)
        if manifest.tokens < 2:
            raise UserError(prefix, "a dataset of one token has nothing to predict", "give more text")
        self.seq_length, self.name, self.prefix = seq_length, name or prefix.name, prefix
        self.text_bytes, self.tokens = manifest.text_bytes, manifest.tokens
        self.tokenizer = manifest.tokenizer
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
        return _sample(tokens, self.seq_length, self.tokenizer.eod_id or 0, self.name, pieces)

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


def _sample(tokens: np.ndarray, seq_length: int, padding: int, source: str, pieces: list[Piece]) -> Sample:
    """Inputs and labels of at most seq_length + 1 tokens; the rest is padding, masked by place and not by id."""
    padded = np.full(seq_length + 1, padding, np.int64)
    padded[: len(tokens)] = tokens
    loss_mask = np.zeros(seq_length, np.float32)
    loss_mask[: len(tokens) - 1] = 1.0
    return Sample(padded[:-1], padded[1:].copy(), loss_mask, np.arange(seq_length), source, tuple(pieces))
