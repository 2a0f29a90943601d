"""Rows of JSONL or Parquet -> a batch of texts with the columns of their lineage and of their spans.

A row is a TrainingText, or any object with a text: a document, which is the training text it is without pairs.
A text is batched column by column, since a corpus has too many for an object each.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.errors import UserError
from data_prep.indexing.lineage import ORIGIN
from data_prep.indexing.spans import LETTERS, CharacterSpans
from data_prep.readers import BLANK_ROW

# A batch ends when its texts are this long together [characters].
BATCH_CHARACTERS = 1 << 21
# What a row may say beside its text.
KEYS = ("id", "source", "origins", "template", "seed", "spans")

Row = Mapping[str, Any]
# A text without spans, as a TrainingText writes it.
_NO_SPANS: Row = {"ends": [], "kinds": "", "of": []}
_SPAN_COLUMNS = itemgetter(*_NO_SPANS)
# The least `of` a span of each class may have.
_LEAST_OF = np.array([0, 0, 0, -1, -1])
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
    """Batches of at most `size` texts; blank texts, those that are null, and blank lines are only counted.

    Errors: a UserError naming file and line, for a row without a string under `text_key`.
    """
    batch = Batch()
    for where, row in rows:
        text = row.get(text_key)
        if text is None and (text_key in row or row is BLANK_ROW):
            text = ""
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
    return text_key == "text" and row.get("origins") is not None


def lineage_columns(batch: Batch, kept: Sequence[int], text_key: str, source_file: str) -> list[pa.Array]:
    """The columns id, origins, template, seed and source_file of the texts `kept` of a batch.

    Errors: a UserError naming file and line of a row whose lineage is not as records.py says.
    """

    def make(indices: Sequence[int]) -> list[pa.Array]:
        return _arrays([_lineage(batch, index, text_key, source_file) for index in indices], source_file)

    return _naming_rows(batch, kept, make)


class _Fault(ValueError):
    """What is wrong with a row; which one is found out later."""


_NOT_AS_RENDERED = (pa.ArrowException, TypeError, KeyError, AttributeError, ValueError, OverflowError)


def _naming_rows[T](batch: Batch, indices: Sequence[int], make: Callable[[Sequence[int]], T]) -> T:
    """What `make` makes of some texts of a batch at once; if it cannot, of each by itself, to name the one at fault."""
    try:
        return make(indices)
    except _NOT_AS_RENDERED:
        for index in indices:
            try:
                make([index])
            except _NOT_AS_RENDERED as error:
                reason = error if isinstance(error, _Fault) else f"{type(error).__name__}: {error}"
                raise UserError(batch.where[index], f"not a training text ({reason})", _RENDERED) from error
        raise


# The values of an origin in the order of its columns, and those that every one has.
_Origin = tuple[str, str, int, int, Sequence[str], int]
_VALUES = itemgetter("document_id", "source", "start", "end", "checks")
# The first columns of a row.
_Lineage = tuple[str, Sequence[_Origin], str, int | None]


def _lineage(batch: Batch, index: int, text_key: str, source_file: str) -> _Lineage:
    row = batch.rows[index]
    if is_training_text(row, text_key):
        origins = [(*_VALUES(origin), origin.get("at", -1)) for origin in _origins(row)]
        template = row.get("template")
        return row.get("id"), origins, "" if template is None else template, row.get("seed")  # type: ignore[return-value]
    where, identifier, source = batch.where[index], row.get("id"), row.get("source", "")
    if type(identifier) is not str and (isinstance(identifier, bool) or not isinstance(identifier, str | int | None)):
        problem = f"'id' is of type {type(identifier).__name__}"
        raise UserError(where, problem, "give a string or a whole number, or none")
    name = f"{source_file}:{where.rpartition(':')[2]}" if identifier in (None, "") else str(identifier)
    source = source if isinstance(source, str) else ""
    return name, ((name, source, 0, len(batch.texts[index]), (), 0),), "", None


def _origins(row: Row) -> list[Any]:
    origins = row["origins"]
    if type(origins) is not list:
        raise _Fault("its origins are not a list")
    return origins


def _arrays(rows: Sequence[_Lineage], source_file: str) -> list[pa.Array]:
    ids, origins, templates, seeds = zip(*rows, strict=True) if rows else ((), (), (), ())
    values = list(zip(*chain.from_iterable(origins), strict=True)) or [()] * len(ORIGIN)
    columns = [
        _lists(column) if field.name == "checks" else _column(column, field.type)
        for column, field in zip(values, ORIGIN, strict=True)
    ]
    struct = pa.StructArray.from_arrays(columns, fields=list(ORIGIN))
    if any(column.null_count for column in columns) or None in ids:
        raise _Fault("a value is missing")
    start, end, at = (np.asarray(struct.field(name)) for name in ("start", "end", "at"))
    if ((start < 0) | (end < start) | (at < -1)).any():
        raise _Fault("an origin is no part of a document")
    return [
        pa.array(ids, pa.string()),
        pa.ListArray.from_arrays(_bounds(origins), struct),
        pa.array(templates, pa.string()),
        _column(seeds, pa.int64()),
        pa.array([source_file] * len(ids), pa.string()),
    ]


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """The values as they are: pyarrow would take 1.0 and true for a number."""
    if kind == pa.int64() and not set(map(type, values)) <= {int, type(None)}:
        raise _Fault("a number is not whole")
    return pa.array(values, kind)


def _lists(lists: Sequence[Sequence[str]]) -> pa.Array:
    if not set(map(type, lists)) <= {list, tuple}:
        raise _Fault("the checks of an origin are not a list")
    strings = pa.array(list(chain.from_iterable(lists)), pa.string())
    if strings.null_count:
        raise _Fault("a value is missing")
    return pa.ListArray.from_arrays(_bounds(lists), strings)


def _bounds(lists: Sequence[Sequence[Any]]) -> pa.Array:
    bounds = np.zeros(len(lists) + 1, np.int32)
    np.cumsum([len(each) for each in lists], out=bounds[1:])
    return pa.array(bounds)


def has_spans(batch: Batch, text_key: str) -> bool:
    """Whether some text of a batch is more than one span of class text, or says of itself what cannot be."""
    return any(
        is_training_text(row, text_key) and not _is_plain(row.get("spans"), len(text))
        for row, text in zip(batch.rows, batch.texts, strict=True)
    )


def _is_plain(spans: Any, length: int) -> bool:
    return spans is None or spans == {"ends": [length], "kinds": "t", "of": [0]} or spans == _NO_SPANS


def span_columns(batch: Batch, text_key: str) -> CharacterSpans:
    """The spans of the texts of a batch; a document, or a training text without spans, is one span of class text.

    Errors: a UserError naming file and line of spans that do not cover their text, or are of no origin or pair of it.
    """
    return _naming_rows(batch, range(len(batch.texts)), partial(_spans, batch, text_key))


def _spans(batch: Batch, text_key: str, indices: Sequence[int]) -> CharacterSpans:
    columns: list[tuple[Any, Any, Any]] = []
    belongings = np.zeros((len(indices), len(LETTERS)), np.int64)  # how many there are for a span of each class
    lengths = np.array([len(batch.texts[index]) for index in indices])
    for place, index in enumerate(indices):
        row, length = batch.rows[index], int(lengths[place])
        spans: Any = row.get("spans") if is_training_text(row, text_key) else None
        if _is_plain(spans, length):
            columns.append(([length], "t", [0]))
            belongings[place, 0] = 1
        else:
            columns.append(_SPAN_COLUMNS(spans))
            origins = _origins(row)
            pairs = sum([len(origin["checks"]) for origin in origins])
            belongings[place, :3] = len(origins), pairs, pairs
    ends, letters, of = zip(*columns, strict=True)
    if not set(map(type, ends + of)) <= {list} or not set(map(type, letters)) <= {str}:
        raise _Fault("its spans are not numbers and letters")
    counts = np.array(list(map(len, ends)), np.int64)
    if [*map(len, letters)] != counts.tolist() or [*map(len, of)] != counts.tolist():
        raise _Fault("its spans are columns of different lengths")
    classes = _CODES[np.frombuffer("".join(letters).encode("latin-1", "replace"), np.uint8)]
    found = CharacterSpans(counts, _whole(ends), _whole(of), classes)
    _check_spans(found, lengths, belongings)
    return found


def _whole(lists: Sequence[Sequence[int]]) -> np.ndarray:
    """The numbers of all lists, int64; an `array` takes no other numbers than whole ones, and is fast."""
    try:
        return np.frombuffer(array("q", list(chain.from_iterable(lists))), np.int64)
    except (TypeError, OverflowError) as error:
        raise _Fault(f"its spans are not numbers and letters: {error}") from error


def _check_spans(spans: CharacterSpans, lengths: np.ndarray, belongings: np.ndarray) -> None:
    """The spans cover texts of these lengths, are of known classes, and belong to one of their `belongings`."""
    text_of_span = spans.text_of()
    first = np.diff(text_of_span, prepend=-1) != 0
    previous = np.where(first, 0, np.concatenate(([0], spans.ends[:-1])))
    uncovered = not spans.counts.all() or (spans.ends[np.cumsum(spans.counts) - 1] != lengths).any()
    if uncovered or (spans.ends <= previous).any() or spans.classes.max() >= len(LETTERS):
        raise _Fault("its spans do not cover the text, or are of no known class")
    wrong = (spans.of < _LEAST_OF[spans.classes]) | (spans.of >= belongings[text_of_span, spans.classes])
    if wrong.any():
        raise _Fault("`of` of a span is no origin of the text, or no pair")
