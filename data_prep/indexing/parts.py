"""The files of a dataset written together: .bin and .idx, spans and lineage, and last the manifest that vouches."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from data_prep.indexing.layout import spans_path
from data_prep.indexing.lineage import LineageWriter
from data_prep.indexing.ragged import Ragged
from data_prep.indexing.reader import IndexedDatasetReader
from data_prep.indexing.spans import Runs, SpansWriter
from data_prep.indexing.writer import IndexedDatasetWriter
from data_prep.manifest import Manifest, manifest_path


class DatasetWriter:
    """A context that writes one dataset; leaving it without `commit` leaves what was there before."""

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self.prefix = prefix
        self._dataset = IndexedDatasetWriter(prefix, vocab_size)
        self._lineage, self._spans = LineageWriter(prefix), SpansWriter(prefix)
        self._stack = ExitStack()
        self._with_spans = False

    @property
    def documents(self) -> int:
        return self._dataset.documents

    @property
    def tokens(self) -> int:
        return self._dataset.tokens

    def __enter__(self) -> Self:
        for writer in (self._dataset, self._lineage, self._spans):
            self._stack.enter_context(writer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add_documents(self, tokens: Ragged) -> None:
        """The ids of some more documents; their runs and their lineage are added apart."""
        self._dataset.add_documents(tokens)

    def add_ids(self, reader: IndexedDatasetReader) -> None:
        """The ids of all documents of a dataset."""
        self._dataset.add_dataset(reader)

    def add_runs(self, runs: Runs) -> None:
        """The runs of some more documents."""
        self._spans.add(runs)

    def add_lineage(self, rows: pa.Table) -> None:
        """The rows of some more documents."""
        self._lineage.add(rows)

    def finish(self, with_spans: bool) -> dict[str, Any]:
        """Writes what is left, and gives the manifest's fields of these files."""
        self._with_spans = with_spans
        bin_hashes, idx_hashes = self._dataset.finish()
        return {
            "dtype": self._dataset.dtype,
            "bin": bin_hashes,
            "idx": idx_hashes,
            "lineage": self._lineage.finish(),
            "spans": self._spans.finish() if with_spans else None,
        }

    def commit(self, manifest: Manifest, durable: bool = True) -> None:
        """Puts all in place; what is not `durable` may be torn after a power cut, and has to be verified.

        A crash at any point leaves the old dataset, the new one, or files that no manifest vouches for.
        """
        manifest_path(self.prefix).unlink(missing_ok=True)
        self._lineage.commit(durable)
        if self._with_spans:
            self._spans.commit(durable)
        else:
            spans_path(self.prefix).unlink(missing_ok=True)
        self._dataset.commit(durable)
        manifest.write(self.prefix, durable)
