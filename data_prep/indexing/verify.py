"""Holds a dataset against its manifest, whole: a damaged, stale or foreign file is an error that names it."""

from __future__ import annotations

from pathlib import Path

from data_prep.indexing.reader import open_dataset
from data_prep.manifest import Manifest


def verify(prefix: Path) -> Manifest:
    """Reads every byte of the dataset, follows every offset, and gives its manifest.

    Errors: a UserError naming the file, and the block, sequence or document at fault.
    """
    manifest, reader = open_dataset(prefix, every_block=True)
    reader.check_layout()
    return manifest
