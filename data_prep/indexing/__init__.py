"""Training text -> indexed dataset.

`index` writes, in this order of renames, beside each other:

    PREFIX.lineage.parquet   one row a document, back to what it was made from   (lineage.py)
    PREFIX.spans             the class of each token, where texts have classes   (spans.py)
    PREFIX.bin, PREFIX.idx   token ids and their index, Megatron's format        (writer.py, reader.py)
    PREFIX.manifest.json     tokenizer, policy, counts and hashes                (data_prep/manifest.py)

A row of the input becomes a document on this way:

    build.py    cut the input into slices (data_prep/shards.py), one shard each; merge them (merge.py)
    shard.py    rows -> batches (rows.py) -> tokens and their classes (documents.py) -> a dataset (parts.py)
    documents   tokenizer.py, encoder.py (ids), offsets.py (where tokens start), spans.py (their classes)

`verify` holds the files against each other later.  A dataset is immutable: a blend remembers its
hash, so data written again at the same prefix is refused there, and grown data is a new source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from data_prep.errors import UserError
from data_prep.manifest import Manifest
from data_prep.settings import IndexSettings


def index(
    settings: IndexSettings,
    inputs: Sequence[Path],
    tokenizer_dir: Path,
    prefix: Path,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Tokenizes JSONL or Parquet of TrainingText, or of rows with a text, into the dataset at `prefix`.

    A row without an id goes by its file and line.  Texts are tokenized whole; blank ones are dropped and counted.
    The documents keep the order of `inputs`.  `progress` is called with the number of documents read since its last
    call.  A run that was killed goes on where it was, and gives the same bytes.
    Errors: a UserError for a bad input line, a missing tokenizer, inputs without any text, or a full disk;
    an older dataset at `prefix` stays as it was then.  (After a full disk PREFIX.shards is left, to go on from.)
    """
    # Imported here: a trainer takes indexing.reader from this package without the tokenizers library.
    from data_prep.indexing.build import build
    from data_prep.readers import DISK_FULL

    try:
        return build(settings, inputs, tokenizer_dir, prefix, progress)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(prefix, "the disk is full", "free some space and run again") from error
        raise
