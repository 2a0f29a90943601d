"""The rows of a Parquet file, a few at a time, however large its row groups and its rows are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep.errors import UserError

# A batch of rows is about so long in memory, and has no more rows than that [bytes, rows].
_BATCH_BYTES, _BATCH_ROWS, _PROBE_ROWS = 1 << 20, 1024, 8
# Read from the disk at once, and read before the allocator gives back what it keeps [bytes].
_BUFFER_BYTES, _RELEASE_BYTES = 1 << 18, 1 << 24


def parquet_rows(
    path: Path, groups: Iterable[int] | None = None, first: int = 1, columns: Collection[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:row, object) of some row groups, all by default, that begin with row `first`; counted from 1.

    Of `columns` those are read that the file has.

    Errors: a UserError for a file that is missing, is not Parquet, or is damaged.
    """
    import pyarrow

    if not path.is_file():
        raise UserError(path, "no such file", "give the path of a .parquet file")
    number = first - 1
    try:
        with open_parquet(path) as file:
            names = [name for name in file.schema_arrow.names if columns is None or name in columns]
            for batch in batches(file, range(file.num_row_groups) if groups is None else groups, names):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(path, f"not a Parquet file, or a damaged one ({error})", "write it again") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: near row {number + 1}", f"not UTF-8 ({error})", "write it again") from error


def open_parquet(path: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile` that holds little in memory.  Errors: an ArrowException or OSError."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES)


def batches(file: Any, groups: Iterable[int], names: list[str]) -> Iterator[Any]:
    """Record batches of an open Parquet file; without threads, which a fork would lack, and which would read ahead."""
    import pyarrow

    read = 0
    for group in groups:
        rows = _rows_a_batch(file, group, names)
        for batch in file.iter_batches(rows, row_groups=[group], columns=names, use_threads=False):
            yield batch
            read += batch.nbytes
            if read >= _RELEASE_BYTES:
                pyarrow.default_memory_pool().release_unused()
                read = 0


def _rows_a_batch(file: Any, group: int, names: list[str]) -> int:
    """By the length of a row, as the row group announces it, and as its first rows are: a dictionary hides it."""
    about = file.metadata.row_group(group)
    announced = about.total_byte_size
    if len(names) < len(file.schema_arrow.names):
        # Asked only where needed: for some damaged footers pyarrow ends the process here, without an exception.
        columns = [about.column(place) for place in range(about.num_columns)]
        announced = sum(
            column.total_uncompressed_size for column in columns if column.path_in_schema.split(".")[0] in names
        )
    lengths = [announced / max(1, about.num_rows)]
    for probe in file.iter_batches(_PROBE_ROWS, row_groups=[group], columns=names, use_threads=False):
        lengths.append(probe.nbytes / max(1, probe.num_rows))
        break
    return min(_BATCH_ROWS, max(1, int(_BATCH_BYTES / max(1, *lengths))))
