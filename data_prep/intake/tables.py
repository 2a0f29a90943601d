"""Parquet files and tables of Arrow, a few rows at a time: the rows, and why one is left out."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from data_prep.intake.drops import Placed, Row, dropped
from data_prep.parquet_rows import batches, open_parquet
from data_prep.records import Document


def parquet_rows(path: Path, name: str, limit: int) -> Iterator[Placed[Row]]:
    """(NAME:ROW, object or drop) of a Parquet file; after a row group that cannot be read the next one follows.

    Errors: an OSError of the system's, as of a disk that fails.
    """
    import pyarrow

    try:
        file = open_parquet(path)
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        names = file.schema_arrow.names
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        yield _broken(f"{name}:1", error, "")
        return
    if not sum(counts):
        yield dropped(name, "empty_file", "there is no row in it")
    with file:
        first = 1
        for group, count in enumerate(counts):
            number = first
            try:
                for batch in batches(file, [group], names):
                    yield from batch_rows(batch, name, number, limit)
                    number += batch.num_rows
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                yield _broken(f"{name}:{number}", error, f"{first + count - number:,} rows are not read: ")
            first += count


def batch_rows(batch: Any, name: str, first: int, limit: int) -> Iterator[Placed[Row]]:
    """(NAME:ROW, object or drop) of a RecordBatch whose first is row `first` of NAME; nulls are left out."""
    rows = None
    if batch.nbytes <= limit:  # no row of it is longer, then
        rows = _values(batch)
    for place in range(batch.num_rows):
        where = f"{name}:{first + place}"
        if rows is None:
            yield _one_row(batch.slice(place, 1), where, limit)
        else:
            yield where, {key: value for key, value in rows[place].items() if value is not None}


def with_plain_metadata(document: Document) -> Document:
    """The document with metadata that JSON can hold: dates and numbers of other kinds spelled out, bytes in base64.

    Errors: a TypeError for what is nested too deep.
    """
    try:
        orjson.dumps(document.metadata)
    except TypeError:
        return replace(document, metadata=orjson.loads(orjson.dumps(document.metadata, default=_spelled)))
    return document


def _values(batch: Any) -> list[Row] | None:
    """The rows of a batch, None if a value of one has no form in Python: bytes that are not UTF-8, a date too late."""
    import pyarrow

    try:
        return batch.to_pylist()
    except (ValueError, OverflowError, pyarrow.ArrowException):
        return None


def _one_row(batch: Any, where: str, limit: int) -> Placed[Row]:
    import pyarrow

    try:
        length = _row_bytes(batch)
        if length > limit:
            return dropped(where, "too_long", f"a row of {length:,} bytes, the most is {limit:,}")
        return where, {key: value for key, value in batch.to_pylist()[0].items() if value is not None}
    except UnicodeDecodeError as error:
        return dropped(where, "bad_utf8", error)
    except (ValueError, OverflowError, pyarrow.ArrowException) as error:
        return dropped(where, "unreadable_value", error)


def _row_bytes(batch: Any) -> int:
    """The bytes of a batch of one row; a dictionary counts by what the row has of it."""
    import pyarrow

    is_dictionary = pyarrow.types.is_dictionary
    return sum((cell.dictionary_decode() if is_dictionary(cell.type) else cell).nbytes for cell in batch.columns)


def _broken(where: str, error: Exception, before: str) -> Placed[Row]:
    if isinstance(error, OSError) and error.errno is not None:
        raise error  # the system's fault
    return dropped(where, "broken_file", f"{before}{error}")


def _spelled(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
