"""Datasets of random tokens, for benchmarks whose figures do not depend on what is said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

EOD = 2


def chunks(seed: int, documents: int, vocabulary: int, at_once: int = 10_000) -> Iterator[Any]:
    """Documents of 125 to 375 tokens, the last of each EOD, as the writer takes them."""
    from data_prep.indexing.ragged import Ragged

    drawn = np.random.default_rng(seed)
    for first in range(0, documents, at_once):
        bounds = np.concatenate(([0], np.cumsum(drawn.integers(125, 376, min(at_once, documents - first)))))
        values = drawn.integers(EOD + 1, vocabulary, bounds[-1])
        values[bounds[1:] - 1] = EOD
        yield Ragged(values, bounds)


def write(prefix: Path, documents: Iterable[Any], vocabulary: int) -> None:
    """The dataset and its manifest."""
    from data_prep.indexing.writer import IndexedDatasetWriter
    from data_prep.manifest import Manifest, TokenizerIdentity

    control: dict[str, Any] = {"bos_id": None, "eos_id": EOD, "eod_id": EOD, "prepend_bos": False, "append_eod": True}
    with IndexedDatasetWriter(prefix, vocabulary) as writer:
        for some in documents:
            writer.add_documents(some)
        bin_hashes, idx_hashes = writer.finish()
        writer.commit()
    Manifest(
        tokenizer=TokenizerIdentity(fingerprint="numbers", vocab_size=vocabulary, **control),
        dtype=writer.dtype,
        documents=writer.documents,
        tokens=writer.tokens,
        text_bytes=4 * writer.tokens,
        dropped={},
        bin=bin_hashes,
        idx=idx_hashes,
        settings={},
        inputs=(),
        created_by="benchmarks",
    ).write(prefix)
