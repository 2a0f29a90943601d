"""PREFIX.lineage.parquet: one row a document of the dataset, back to what it was made from.

| column | type | meaning |
|---|---|---|
| id | string | the training text's id |
| origins | list of struct | the raw texts inside, as records.Origin has them: document_id, source, start, end, checks |
| template | string | the styles drawn, empty for raw text |
| seed | int64 | the seed of their draws, null for raw text |
| source_file | string | name of the input file |
| first_token | int64 | where the document starts in the .bin [tokens] |
| tokens | int32 | its length, BOS and EOD included [tokens] |

Row groups have ROW_GROUP rows each, whatever the shards were, so that the same documents give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
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
    ]
)
ROW_GROUP = 16_384
_MEND = "write the dataset again with `ipt data index`"


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
    return pa.concat_tables(lineage_groups(prefix))


def lineage_groups(prefix: Path) -> Iterator[pa.Table]:
    """The table of a dataset, a row group at a time.

    Errors: a UserError naming a file that is missing, damaged, or has other columns.
    """
    path = lineage_path(prefix)
    with _open(path) as file:
        for group in range(file.num_row_groups):
            try:
                yield file.read_row_group(group)
            except (pa.ArrowException, OSError) as error:
                raise UserError(path, f"damaged in row group {group} ({error})", _MEND) from error


def read_row(prefix: Path, document: int) -> dict[str, Any]:
    """The row of one document.

    Errors: a UserError as above; IndexError outside.
    """
    with _open(lineage_path(prefix)) as file:
        group, row = divmod(document, ROW_GROUP)
        if not 0 <= document < file.metadata.num_rows:
            raise IndexError(f"document {document} of {file.metadata.num_rows}")
        found: dict[str, Any] = file.read_row_group(group).slice(row, 1).to_pylist()[0]
        return found


def _open(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise UserError(path, "no such file", _MEND)
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(path, f"not a Parquet file ({error})", _MEND) from error
    if not file.schema_arrow.equals(SCHEMA):
        raise UserError(path, f"its columns are {', '.join(file.schema_arrow.names)}, unlike a lineage table", _MEND)
    return file
