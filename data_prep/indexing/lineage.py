"""PREFIX.lineage.parquet: one row a document of the dataset, back to what it was made from.

| column | type | meaning |
|---|---|---|
| id | string | the training text's id |
| origins | list of struct | the raw texts inside, as records.Origin has them: document_id, source, start, ... |
| template | string | the styles drawn, empty for raw text |
| seed | int64 | the seed of their draws, null for raw text |
| source_file | string | name of the input file |
| first_token | int64 | where the document starts in the .bin [tokens] |
| tokens | int32 | its length, BOS and EOD included [tokens] |
| text_bytes | int64 | length of its text in UTF-8 [bytes] |

Row groups have ROW_GROUP rows each, whatever the shards were, so that the same documents give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.errors import UserError
from data_prep.indexing.layout import lineage_path
from data_prep.manifest import BlockHasher, FileHashes, commit, partial_path

ORIGIN = pa.struct(
    [
        ("document_id", pa.string()),
        ("source", pa.string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("checks", pa.list_(pa.string())),
        ("at", pa.int64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("origins", pa.list_(ORIGIN)),
        ("template", pa.string()),
        ("seed", pa.int64()),
        ("source_file", pa.string()),
        ("first_token", pa.int64()),
        ("tokens", pa.int32()),
        ("text_bytes", pa.int64()),
    ]
)
ROW_GROUP = 16_384
_MEND = "write the dataset again with `ipt data index`"
# What pyarrow raises over a file that is not what it says it is.
_DAMAGED = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)


class LineageWriter:
    """A context that writes rows in the order of the documents; leaving it without `commit` leaves nothing."""

    def __init__(self, prefix: Path) -> None:
        self._path = lineage_path(prefix)
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def __enter__(self) -> Self:
        self._file = pq.ParquetWriter(partial_path(self._path), SCHEMA, compression="zstd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        partial_path(self._path).unlink(missing_ok=True)

    def add(self, rows: pa.Table) -> None:
        """Some rows, their columns as above."""
        self._waiting.append(rows)
        self._rows += rows.num_rows
        while self._rows >= ROW_GROUP:
            self._write(ROW_GROUP)

    def finish(self) -> FileHashes:
        """Writes what is left, and gives the file's hashes; `commit` has only the rename to do then."""
        self._write(self._rows)
        self._file.close()
        hasher = BlockHasher()
        with partial_path(self._path).open("rb") as file:
            while block := file.read(1 << 20):
                hasher.update(block)
        return hasher.finish()

    def commit(self, durable: bool = True) -> None:
        """Renames the finished file into place."""
        commit(partial_path(self._path), self._path, durable)

    def _write(self, count: int) -> None:
        if not count:
            return
        table = pa.concat_tables(self._waiting)
        self._file.write_table(table.slice(0, count).combine_chunks(), row_group_size=ROW_GROUP)
        rest = table.slice(count)
        self._waiting, self._rows = [rest] if rest.num_rows else [], rest.num_rows


def read_lineage(prefix: Path) -> pa.Table:
    """The table of a dataset, its columns as above."""
    return pa.concat_tables([SCHEMA.empty_table(), *lineage_groups(prefix)])


def lineage_groups(prefix: Path) -> Iterator[pa.Table]:
    """The table of a dataset, a row group at a time.

    Errors: a UserError naming a file that is missing, damaged, or has other columns.
    """
    path = lineage_path(prefix)
    with open_lineage(path) as file:
        for group in range(file.num_row_groups):
            yield read_group(file, group, path)


def read_row(prefix: Path, document: int) -> dict[str, Any]:
    """The row of one document.

    Errors: a UserError as above; IndexError outside.
    """
    return read_rows(prefix, [document])[document]


def read_rows(prefix: Path, documents: Iterable[int]) -> dict[int, dict[str, Any]]:
    """The rows of some documents, each row group read once.

    Errors: a UserError as above; IndexError outside.
    """
    path = lineage_path(prefix)
    wanted, found = sorted(set(documents)), dict[int, dict[str, Any]]()
    with open_lineage(path) as file:
        for document in wanted:
            if not 0 <= document < file.metadata.num_rows:
                raise IndexError(f"document {document} of {file.metadata.num_rows}")
        first = 0
        for group in range(file.num_row_groups):
            stop = first + file.metadata.row_group(group).num_rows
            inside = [document for document in wanted if first <= document < stop]
            if inside:
                rows = read_group(file, group, path).take([document - first for document in inside])
                found.update(zip(inside, rows.to_pylist(), strict=True))
            first = stop
    return found


def read_group(file: pq.ParquetFile, group: int, path: Path) -> pa.Table:
    """A row group, found to be whole: rows as announced, text that is text, and a value in each place but `seed`."""
    try:
        table = file.read_row_group(group)
        table.validate(full=True)
    except _DAMAGED as error:
        raise _damaged(path, group, str(error)) from error
    if table.num_rows != file.metadata.row_group(group).num_rows:
        raise _damaged(path, group, "other rows than announced")
    origins = pc.list_flatten(table["origins"])
    columns = [table[name] for name in SCHEMA.names if name != "seed"]
    columns += [origins, *(pc.struct_field(origins, name) for name in ORIGIN.names)]
    if any(column.null_count for column in [*columns, pc.list_flatten(pc.struct_field(origins, "checks"))]):
        raise _damaged(path, group, "a value is missing")
    return table


def read_text_bytes(prefix: Path) -> np.ndarray:
    """The text_bytes of all documents, int64.  Errors: a UserError as `lineage_groups`."""
    path = lineage_path(prefix)
    found = [np.empty(0, np.int64)]
    with open_lineage(path) as file:
        for group in range(file.num_row_groups):
            try:
                column = file.read_row_group(group, columns=["text_bytes"])["text_bytes"]
            except _DAMAGED as error:
                raise _damaged(path, group, str(error)) from error
            if column.null_count:
                raise _damaged(path, group, "a value is missing")
            found.append(column.to_numpy())
    return np.concatenate(found)


def read_pair_counts(file: pq.ParquetFile, group: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The origins of each document of a row group, and the pairs of each of these origins, int64.

    Errors: a UserError as `lineage_groups`.
    """
    try:
        origins = file.read_row_group(group, columns=["origins.list.element.checks"])["origins"]
        checks = pc.struct_field(pc.list_flatten(origins), "checks")
        counts = [pc.list_value_length(column).to_numpy().astype(np.int64) for column in (origins, checks)]
    except _DAMAGED as error:
        raise _damaged(path, group, str(error)) from error
    return counts[0], counts[1]


def _damaged(path: Path, group: int, problem: str) -> UserError:
    return UserError(path, f"damaged in row group {group} ({problem})", _MEND)


def open_lineage(path: Path) -> pq.ParquetFile:
    """The file, its columns as above.  Errors: a UserError naming a file that is missing, or another kind of file."""
    if not path.is_file():
        raise UserError(path, "no such file", _MEND)
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        whole = sum(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
    except _DAMAGED as error:
        raise UserError(path, f"not a Parquet file ({error})", _MEND) from error
    if not schema.equals(SCHEMA):
        raise UserError(path, f"its columns are {', '.join(schema.names)}, unlike a lineage table", _MEND)
    if whole != file.metadata.num_rows:
        raise UserError(path, f"damaged: {file.metadata.num_rows} rows announced, {whole} in its row groups", _MEND)
    return file
