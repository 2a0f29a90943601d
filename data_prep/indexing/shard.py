"""One slice of the input -> a dataset of its own: the unit of work, of resuming, and of parallel indexing."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from data_prep.indexing.documents import DocumentMaker, Documents
from data_prep.indexing.encoder import Encoder
from data_prep.indexing.lineage import SCHEMA
from data_prep.indexing.parts import DatasetWriter
from data_prep.indexing.rows import KEYS, Batch, batches, has_spans, lineage_columns
from data_prep.indexing.tokenizer import TextTokenizer
from data_prep.manifest import InputFile, Manifest, package_version
from data_prep.readers import read_slice
from data_prep.settings import IndexSettings
from data_prep.shards import Slice

logger = logging.getLogger(__name__)

# Settings that leave no trace in the dataset: a folder of this machine (its fingerprint is recorded), and speed.
NOT_RECORDED = {"tokenizer", "batch_size", "workers", "shard_mib", "encoder"}


class ShardTask(NamedTuple):
    """A slice, its file's name and its identity (data_prep/shards.py), and the prefix of the dataset it becomes."""

    part: Slice
    name: str
    identity: str
    prefix: Path


@dataclass(frozen=True)
class ShardIndexer:
    """Makes the task function of a process: `ShardIndexer(...)()` holds the tokenizer, and its calls write shards.

    Where gigatoken cannot take the tokenizer, the first process to make the file `notice` tells it, at once.
    """

    tokenizer: TextTokenizer
    settings: IndexSettings
    notice: Path

    def __call__(self) -> _Worker:
        pa.array([""])  # imports pandas, where it is: here once, rather than in every fork
        worker = _Worker(self.tokenizer, self.settings)
        if worker.slow_because and _is_first(self.notice):
            told = "gigatoken cannot take this tokenizer (%s): the tokenizers library encodes, slower"
            logger.warning(told, worker.slow_because)
        return worker


def _is_first(notice: Path) -> bool:
    try:
        notice.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class _Worker:
    def __init__(self, tokenizer: TextTokenizer, settings: IndexSettings) -> None:
        self._settings, self._identity = settings, tokenizer.identity
        self._encoder = Encoder(tokenizer, fast=settings.encoder == "gigatoken")
        self.slow_because = self._encoder.slow_because
        self._maker = DocumentMaker(tokenizer, self._encoder)

    def __call__(self, task: ShardTask) -> Manifest:
        """Writes the shard, if need be without a document.  Errors: a UserError for a bad row."""
        settings, dropped, counts, spans = self._settings, Counter[str](empty=0), Counter[str](), False
        with DatasetWriter(task.prefix, self._identity.vocab_size) as writer:
            for batch in batches(
                read_slice(task.part, {settings.text_key, *KEYS}), settings.text_key, settings.batch_size
            ):
                documents = self._maker.make(batch, settings.text_key)
                dropped["empty"] += batch.blank + len(batch.texts) - len(documents.kept)
                counts["text_bytes"] += int(documents.text_bytes.sum())
                counts["lost_characters"] += sum(documents.lost)
                counts["lossy_documents"] += sum(map(bool, documents.lost))
                spans |= has_spans(batch, settings.text_key)
                lineage = self._lineage(batch, documents, task.name, writer.tokens)
                writer.add_documents(documents.tokens)
                writer.add_runs(documents.runs)
                writer.add_lineage(lineage)
            files = writer.finish(with_spans=settings.spans and spans)
            manifest = Manifest(
                tokenizer=self._identity,
                documents=writer.documents,
                tokens=writer.tokens,
                text_bytes=counts["text_bytes"],
                lost_characters=counts["lost_characters"],
                lossy_documents=counts["lossy_documents"],
                dropped=dict(dropped),
                **files,
                encoder=self._encoder.name,
                settings=recorded(settings),
                inputs=(InputFile(name=task.name, bytes=task.part.end - task.part.start, hash=task.identity),),
                created_by=package_version(),
            )
            writer.commit(manifest, durable=False)
        return manifest

    def _lineage(self, batch: Batch, documents: Documents, source_file: str, first_token: int) -> pa.Table:
        columns = lineage_columns(batch, documents.kept, self._settings.text_key, source_file)
        lengths = documents.tokens.lengths()
        firsts = first_token + np.cumsum(lengths) - lengths
        columns += map(pa.array, (firsts, lengths.astype(np.int32), documents.text_bytes))
        return pa.table(columns, schema=SCHEMA)


def recorded(settings: IndexSettings) -> dict[str, Any]:
    """The settings that the dataset depends on."""
    return settings.model_dump(mode="json", exclude=NOT_RECORDED)
