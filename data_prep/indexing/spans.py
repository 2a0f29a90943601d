"""PREFIX.spans: which class each token of a dataset belongs to, for loss policies and for `ipt data trace`.

A token takes the class of its first byte.  Per document there are runs of tokens of one class; a run is known by the
token it ends before, counted within the document.  BOS, EOD and the tokens of a chat template are `control`.

File, little endian: magic | u64 documents | u64 runs | i64 first run of each document, and `runs` [documents + 1] |
i32 end of each run [tokens] | i32 `of` | u8 class code.  `of` is the origin of a text, or the pair (see records.Span).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Final, NamedTuple, Self

import numpy as np

from data_prep.errors import UserError
from data_prep.indexing.layout import forget_pages, map_file, spans_path
from data_prep.manifest import BlockHasher, FileHashes, commit, partial_path

MAGIC = b"IPTSPAN1"
HEADER = struct.Struct("<8sQQ")
CLASSES: Final = ("text", "question", "answer", "template", "control")
LETTERS: Final = "tqa.c"
CONTROL: Final = CLASSES.index("control")
_MEND = "write the dataset again with `ipt data index`"
_DOCUMENTS = 1 << 14


class Runs(NamedTuple):
    """Runs of some documents: `counts` int64 [documents], the others [runs], as in the file."""

    counts: np.ndarray
    ends: np.ndarray
    of: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True, slots=True)
class CharacterSpans:
    """Spans of some texts: `counts` int64 [texts]; `ends` [characters of the text], `of` and `classes`, [spans]."""

    counts: np.ndarray
    ends: np.ndarray
    of: np.ndarray
    classes: np.ndarray

    def text_of(self) -> np.ndarray:
        """Number of the text of each span, int64 [spans]."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def byte_ends(spans: CharacterSpans, blobs: Sequence[bytes], characters: np.ndarray) -> np.ndarray:
    """`spans.ends` counted in bytes of UTF-8 instead; `characters` is the length of each text."""
    sizes = np.array([len(blob) for blob in blobs], np.int64)
    if np.array_equal(sizes, characters):
        return spans.ends
    text_of_span = spans.text_of()
    ends = spans.ends + (np.cumsum(characters) - characters)[text_of_span]
    joined = np.frombuffer(b"".join(blobs), np.uint8)
    beyond_ascii = np.flatnonzero(joined >= 0x80)
    trailing = beyond_ascii[(joined[beyond_ascii] & 0xC0) == 0x80]
    # A trailing byte at p, with j such bytes before it, belongs to character p - j - 1; it moves all characters after.
    moves_from = trailing - np.arange(len(trailing))
    moved = ends + np.searchsorted(moves_from, ends, side="right")
    return moved - (np.cumsum(sizes) - sizes)[text_of_span]


def token_runs(spans: CharacterSpans, stops: np.ndarray, lengths: np.ndarray, before: int, after: int) -> Runs:
    """Runs of the documents made of some texts; a text without a token is no document and has none.

    Args:
        stops: how many tokens of its text start before each span ends, rising within a text [tokens].
        lengths: of each text [tokens].
        before, after: control tokens that stand around each text [tokens].
    """
    document, stops, of, classes = _with_control(spans, stops + before, lengths, before, after)
    previous = np.where(np.diff(document, prepend=-1) != 0, 0, np.concatenate(([0], stops[:-1])))
    kept = (stops > previous) & (lengths[document] > 0)
    counts = np.bincount(document[kept], minlength=len(lengths))[lengths > 0]
    return Runs(counts, stops[kept].astype("<i4"), of[kept].astype("<i4"), classes[kept].astype("u1"))


def plain_runs(lengths: np.ndarray, before: int, after: int) -> Runs:
    """Runs of documents of these lengths [tokens] that are one text each, with control tokens around it."""
    columns = [(np.full(len(lengths), before), -1, CONTROL)] * before
    columns += [(lengths - after, 0, 0)]
    columns += [(lengths, -1, CONTROL)] * after
    ends = np.stack([column[0] for column in columns], axis=1).ravel()
    of, classes = (np.tile([column[place] for column in columns], len(lengths)) for place in (1, 2))
    kept = np.repeat(lengths > before + after, len(columns)) | (classes == CONTROL)
    counts = kept.reshape(len(lengths), len(columns)).sum(axis=1)
    return Runs(counts, ends[kept].astype("<i4"), of[kept].astype("<i4"), classes[kept].astype("u1"))


def _with_control(
    spans: CharacterSpans, stops: np.ndarray, lengths: np.ndarray, before: int, after: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(document, end, of, class) of each run, those of the control tokens around each text included."""
    texts = np.arange(len(lengths))
    none, control = np.full(len(texts), -1), np.full(len(texts), CONTROL)
    columns = [(np.repeat(texts, spans.counts), stops, spans.of, spans.classes)]
    if before:
        columns.insert(0, (texts, np.full(len(texts), before), none, control))
    if after:
        columns.append((texts, lengths + before + after, none, control))
    joined = [np.concatenate(column) for column in zip(*columns, strict=True)]
    # By document, then by end; of runs that end alike the first one holds the tokens, and that is BOS.
    order = np.lexsort((joined[1], joined[0]))
    document, end, pair, kind = (column[order] for column in joined)
    return document, end, pair, kind


class SpansWriter:
    """A context that writes the spans of one dataset; leaving it without `commit` leaves nothing.

    The columns are kept in files of their own until `finish` puts them one after the other.
    """

    def __init__(self, prefix: Path) -> None:
        self._path = spans_path(prefix)
        self._stack = ExitStack()
        self._columns: list[IO[bytes]] = []
        self.documents = self.runs = 0

    def __enter__(self) -> Self:
        for _ in range(4):
            self._columns.append(self._stack.enter_context(TemporaryFile(dir=self._path.parent)))
        self._stack.callback(partial_path(self._path).unlink, missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, runs: Runs) -> None:
        """The runs of some more documents."""
        bounds = self.runs + np.cumsum(runs.counts)
        for file, column in zip(self._columns, (bounds.astype("<i8"), runs.ends, runs.of, runs.classes), strict=True):
            file.write(np.ascontiguousarray(column))
        self.documents += len(runs.counts)
        self.runs += len(runs.ends)

    def finish(self) -> FileHashes:
        """Writes the file beside its name, and gives its hashes."""
        hasher = BlockHasher()
        with partial_path(self._path).open("wb") as file:
            header = HEADER.pack(MAGIC, self.documents, self.runs) + bytes(8)  # the first run of the first document
            for data in chain([header], self._column_blocks()):
                file.write(data)
                hasher.update(data)
        return hasher.finish()

    def commit(self, durable: bool = True) -> None:
        """Renames the finished file into place."""
        commit(partial_path(self._path), self._path, durable)

    def _column_blocks(self) -> Iterator[bytes]:
        for file in self._columns:
            file.seek(0)
            while block := file.read(1 << 20):
                yield block


class SpansReader:
    """The runs of a dataset's documents, memory-mapped."""

    def __init__(self, prefix: Path) -> None:
        """Errors: a UserError naming the file that is missing, of another format, or cut short."""
        path = spans_path(prefix)
        raw = map_file(path)
        if len(raw) < HEADER.size:
            raise UserError(path, f"{len(raw)} bytes are too few for a header", _MEND)
        magic, documents, runs = HEADER.unpack(raw[: HEADER.size].tobytes())
        if magic != MAGIC:
            raise UserError(path, f"not a file of spans: magic {magic!r}", _MEND)
        expected = HEADER.size + 8 * (documents + 1) + 9 * runs
        if len(raw) != expected:
            raise UserError(path, f"{len(raw)} bytes where its header announces {expected}", _MEND)
        self.path, self.documents, self.runs = path, documents, runs
        first, second = HEADER.size + 8 * (documents + 1), HEADER.size + 8 * (documents + 1) + 4 * runs
        self.bounds = raw[HEADER.size : first].view("<i8")
        self.ends = raw[first:second].view("<i4")
        self.of = raw[second : second + 4 * runs].view("<i4")
        self.classes = raw[second + 4 * runs :]

    def document(self, index: int) -> Iterator[tuple[int, int, str, int]]:
        """(start, end, class, of) of each run of a document [tokens].  IndexError outside."""
        if not 0 <= index < self.documents:
            raise IndexError(f"document {index} of {self.documents}")
        runs, start = self.runs_of(index, index + 1), 0
        for end, of, kind in zip(runs.ends.tolist(), runs.of.tolist(), runs.classes.tolist(), strict=True):
            yield start, end, CLASSES[kind], of
            start = end

    def columns(self, document: int) -> tuple[list[int], list[int], bytes]:
        """End, `of` and class code of each run of a document, of a file that was verified.  IndexError outside."""
        if not 0 <= document < self.documents:
            raise IndexError(f"document {document} of {self.documents}")
        part = slice(self.bounds[document], self.bounds[document + 1])
        return self.ends[part].tolist(), self.of[part].tolist(), self.classes[part].tobytes()

    def runs_of(self, start: int, stop: int, lengths: np.ndarray | None = None) -> Runs:
        """The runs of documents [start, stop), found to follow each other; with `lengths` [tokens], to cover them too.

        Errors: a UserError naming the first document at fault.
        """
        bounds = self.bounds[start : stop + 1]
        wrong = np.flatnonzero((bounds[1:] <= bounds[:-1]) | (bounds[:-1] < 0) | (bounds[1:] > self.runs))
        if wrong.size:
            raise self._fault(start + int(wrong[0]))
        part = slice(int(bounds[0]), int(bounds[-1]))
        ends, of, classes = self.ends[part], self.of[part], self.classes[part]
        places, counts = bounds - bounds[0], np.diff(bounds)
        previous = np.concatenate(([0], ends[:-1]))
        previous[places[:-1]] = 0
        wrong = np.flatnonzero((ends <= previous) | (classes >= len(CLASSES)) | (of < -1))
        found = [np.searchsorted(places, wrong[:1], side="right") - 1]
        if lengths is not None:
            found.append(np.flatnonzero(ends[places[1:] - 1] != lengths))
        at_fault = np.concatenate(found)
        if at_fault.size:
            raise self._fault(start + int(at_fault.min()))
        return Runs(counts, ends, of, classes)

    def check(self, lengths: np.ndarray) -> None:
        """The runs cover documents of these lengths [tokens] without gap or overlap.

        Errors: a UserError naming the first document at fault.
        """
        self.check_frame(len(lengths))
        for start in range(0, self.documents, _DOCUMENTS):
            stop = min(start + _DOCUMENTS, self.documents)
            self.runs_of(start, stop, lengths[start:stop])

    def check_frame(self, documents: int) -> None:
        """The file is of so many documents, and has no run before the first or after the last."""
        if documents != self.documents:
            raise UserError(self.path, f"{self.documents} documents where the .idx has {documents}", _MEND)
        if self.bounds[0] != 0 or self.bounds[-1] != self.runs:
            raise UserError(self.path, "its runs do not belong to its documents", _MEND)

    def forget_pages(self) -> None:
        """Lets go of the memory that a pass over the file took."""
        forget_pages(self.ends)

    def _fault(self, document: int) -> UserError:
        return UserError(self.path, f"the runs of document {document} do not cover it", _MEND)
