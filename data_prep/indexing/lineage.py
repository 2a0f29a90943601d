"""PREFIX.lineage.parquet: one row a document of the dataset, back to what it was made from.

| column | type | meaning |
|---|---|---|
| id | string | the training text's id |
| document_ids | list of string | the raw documents inside |
| template | string | the styles drawn, empty for raw text |
| source_file | string | name of the input file |
| first_token | int64 | where the document starts in the .bin [tokens] |
| tokens | int32 | its length, BOS and EOD included [tokens] |
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.manifest import commit, partial_path
from data_prep.records import TrainingText

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("document_ids", pa.list_(pa.string())),
        ("template", pa.string()),
        ("source_file", pa.string()),
        ("first_token", pa.int64()),
        ("tokens", pa.int32()),
    ]
)
_ROWS = 65_536


def lineage_path(prefix: Path) -> Path:
    """PREFIX.lineage.parquet."""
    return prefix.with_name(prefix.name + ".lineage.parquet")


class LineageWriter:
    """A context that writes rows in the order of the documents; leaving it without `commit` leaves nothing."""

    def __init__(self, prefix: Path) -> None:
        self._path = lineage_path(prefix)
        self._rows: list[dict[str, object]] = []

    def __enter__(self) -> Self:
        self._file = pq.ParquetWriter(partial_path(self._path), SCHEMA, compression="zstd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        partial_path(self._path).unlink(missing_ok=True)

    def add(self, text: TrainingText, source_file: str, first_token: int, tokens: int) -> None:
        """One row; `first_token` and `tokens` as the columns of those names."""
        values = (text.id, list(text.document_ids), text.template, source_file, first_token, tokens)
        self._rows.append(dict(zip(SCHEMA.names, values, strict=True)))
        if len(self._rows) == _ROWS:
            self._flush()

    def finish(self) -> None:
        """Writes what is left; `commit` has only the rename to do then."""
        self._flush()
        self._file.close()

    def commit(self) -> None:
        """Renames the finished file into place."""
        commit(partial_path(self._path), self._path)

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
            self._rows.clear()


def read_lineage(prefix: Path) -> pa.Table:
    """The table of a dataset, its columns as above."""
    return pq.read_table(lineage_path(prefix))
