"""Rows of JSONL or Parquet -> a batch of texts with the columns of their lineage and of their spans.

A row is a TrainingText, or any object with a text: a document, which is the training text it is without pairs.
A text is batched column by column, since a corpus has too many for an object each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.errors import UserError
from data_prep.indexing.lineage import ORIGIN
from data_prep.indexing.spans import LETTERS, CharacterSpans

# A batch ends when its texts are this long together [characters].
BATCH_CHARACTERS = 1 << 21

Row = Mapping[str, Any]
_CODES = np.full(256, 255, np.uint8)
_CODES[list(LETTERS.encode())] = range(len(LETTERS))
_RENDERED = "give the output of `ipt data render`"


@dataclass(slots=True)
class Batch:
    """Texts that are encoded together; `where` (FILE:LINE) and `rows` go with them, one by one.

    `number` is the place of the batch, `read` the rows that it took, `blank` those of them without a text.
    """

    where: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    characters: int = 0
    blank: int = 0
    read: int = 0
    number: int = 0


def batches(rows: Iterable[tuple[str, Row]], text_key: str, size: int) -> Iterator[Batch]:
    """Batches of at most `size` texts; blank texts are only counted.

    Errors: a UserError naming file and line, for a row without a string under `text_key`.
    """
    batch = Batch()
    for where, row in rows:
        text = row.get(text_key)
        if not isinstance(text, str):
            found = f"it is of type {type(text).__name__}" if text_key in row else "no such key"
            raise UserError(
                where, f"expected a string under '{text_key}', {found}", "name the text key, or mend the line"
            )
        batch.read += 1
        if not text or text.isspace():
            batch.blank += 1
            continue
        batch.where.append(where)
        batch.rows.append(row)
        batch.texts.append(text)
        batch.characters += len(text)
        if len(batch.texts) == size or batch.characters >= BATCH_CHARACTERS:
            yield batch
            batch = Batch(number=batch.number + 1)
    if batch.read:
        yield batch


def is_training_text(row: Row, text_key: str) -> bool:
    """Whether a row says where it came from; under another text key it is a document, whatever else it holds."""
    return text_key == "text" and "origins" in row


def lineage_columns(batch: Batch, kept: Sequence[int], text_key: str, source_file: str) -> list[pa.Array]:
    """The columns id, origins, template, seed and source_file of the texts `kept` of a batch.

    Errors: a UserError naming file and line of a row whose lineage is not as records.py says.
    """
    try:
        return _arrays([_lineage(batch, index, text_key, source_file) for index in kept], source_file)
    except _NOT_AS_RENDERED:
        for index in kept:
            try:
                _arrays([_lineage(batch, index, text_key, source_file)], source_file)
            except _NOT_AS_RENDERED as error:
                problem = f"not a training text ({type(error).__name__}: {error})"
                raise UserError(batch.where[index], problem, _RENDERED) from error
        raise


_NOT_AS_RENDERED = (pa.ArrowException, TypeError, KeyError, AttributeError)
# The values of an origin in the order of its columns, and those that every one has.
_Origin = tuple[str, str, int, int, Sequence[str], int]
_VALUES = itemgetter("document_id", "source", "start", "end", "checks")
# The first columns of a row.
_Lineage = tuple[str, Sequence[_Origin], str, int | None]


def _lineage(batch: Batch, index: int, text_key: str, source_file: str) -> _Lineage:
    row = batch.rows[index]
    if is_training_text(row, text_key):
        origins = [(*_VALUES(origin), origin.get("at", -1)) for origin in row["origins"]]
        return row.get("id"), origins, row.get("template", ""), row.get("seed")  # type: ignore[return-value]
    where, identifier, source = batch.where[index], row.get("id"), row.get("source", "")
    if type(identifier) is not str and (isinstance(identifier, bool) or not isinstance(identifier, str | int | None)):
        problem = f"'id' is of type {type(identifier).__name__}"
        raise UserError(where, problem, "give a string or a whole number, or none")
    name = f"{source_file}:{where.rpartition(':')[2]}" if identifier in (None, "") else str(identifier)
    source = source if isinstance(source, str) else ""
    return name, ((name, source, 0, len(batch.texts[index]), (), 0),), "", None


def _arrays(rows: Sequence[_Lineage], source_file: str) -> list[pa.Array]:
    ids, origins, templates, seeds = zip(*rows, strict=True) if rows else ((), (), (), ())
    values = list(zip(*chain.from_iterable(origins), strict=True)) or [()] * len(ORIGIN)
    columns = [
        _lists(column) if field.name == "checks" else pa.array(column, field.type)
        for column, field in zip(values, ORIGIN, strict=True)
    ]
    struct = pa.StructArray.from_arrays(columns, fields=list(ORIGIN))
    if any(column.null_count for column in columns) or None in ids:
        raise TypeError("a value is missing")
    return [
        pa.array(ids, pa.string()),
        pa.ListArray.from_arrays(_bounds(origins), struct),
        pa.array(templates, pa.string()),
        pa.array(seeds, pa.int64()),
        pa.array([source_file] * len(ids), pa.string()),
    ]


def _lists(lists: Sequence[Sequence[str]]) -> pa.Array:
    return pa.ListArray.from_arrays(_bounds(lists), pa.array(list(chain.from_iterable(lists)), pa.string()))


def _bounds(lists: Sequence[Sequence[Any]]) -> pa.Array:
    bounds = np.zeros(len(lists) + 1, np.int32)
    np.cumsum([len(each) for each in lists], out=bounds[1:])
    return pa.array(bounds)


def has_spans(batch: Batch, text_key: str) -> bool:
    """Whether some text of a batch is more than one span of class text."""
    return any(is_training_text(row, text_key) and _has_spans(row.get("spans")) for row in batch.rows)


def _has_spans(spans: Any) -> bool:
    return isinstance(spans, dict) and (len(spans.get("ends") or ()) > 1 or spans.get("kinds") not in (None, "", "t"))


def span_columns(batch: Batch, text_key: str) -> CharacterSpans:
    """The spans of the texts of a batch; a document, or a training text without spans, is one span of class text.

    Errors: a UserError naming file and line of spans that do not cover their text.
    """
    ends: list[Sequence[int]] = []
    of: list[Sequence[int]] = []
    letters: list[str] = []
    for row, text in zip(batch.rows, batch.texts, strict=True):
        spans: Any = row.get("spans") if is_training_text(row, text_key) else None
        if not isinstance(spans, dict) or not spans.get("ends"):
            spans = {"ends": [len(text)], "kinds": "t", "of": [0]}
        ends.append(spans["ends"])
        letters.append(spans.get("kinds", ""))
        of.append(spans.get("of", ()))
    counts = np.array([len(each) for each in ends], np.int64)
    for index, count in enumerate(counts):
        if len(letters[index]) != count or len(of[index]) != count:
            raise UserError(batch.where[index], "its spans are columns of different lengths", _RENDERED)
    try:
        flat_ends = np.fromiter(chain.from_iterable(ends), np.int64, int(counts.sum()))
        flat_of = np.fromiter(chain.from_iterable(of), np.int64, int(counts.sum()))
        classes = _CODES[np.frombuffer("".join(letters).encode("latin-1"), np.uint8)]
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            batch.where[0], f"spans here or below are not numbers and letters ({error})", _RENDERED
        ) from error
    _check_cover(batch, counts, flat_ends, classes)
    return CharacterSpans(counts, flat_ends, flat_of, classes)


def _check_cover(batch: Batch, counts: np.ndarray, ends: np.ndarray, classes: np.ndarray) -> None:
    text_of_span = np.repeat(np.arange(len(counts)), counts)
    first = np.diff(text_of_span, prepend=-1) != 0
    previous = np.where(first, 0, np.concatenate(([0], ends[:-1])))
    last = np.array([len(text) for text in batch.texts])
    wrong = [text_of_span[(ends <= previous) | (classes == 255)], np.flatnonzero(ends[np.cumsum(counts) - 1] != last)]
    found = np.concatenate(wrong)
    if found.size:
        raise UserError(
            batch.where[found.min()], "its spans do not cover the text, or are of no known class", _RENDERED
        )
