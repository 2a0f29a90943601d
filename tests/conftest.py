"""Fixtures shared by the tests of both halves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from data_prep.indexing.ragged import ragged
from data_prep.indexing.writer import IndexedDatasetWriter
from data_prep.manifest import Manifest, TokenizerIdentity

WriteDataset = Callable[..., Manifest]

settings.register_profile("untimed", deadline=None)  # a loaded machine makes no example wrong
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with runs of minutes first, those of seconds last: workers that take a file each end together then."""
    items.sort(key=lambda item: "data_prep" in item.path.parts)


@pytest.fixture(autouse=True)
def _the_shim_stays_out() -> Iterator[None]:
    """The CPU shim must not reach this process: transformers, the oracle of many tests, runs in it."""
    yield
    assert "megatron_ipt.mcore.shim" not in sys.modules


@pytest.fixture(scope="session")
def write_dataset() -> WriteDataset:
    """Writes documents of token ids as a dataset with its manifest; keywords change the tokenizer's identity."""

    def write(prefix: Path, documents: Sequence[Sequence[int]], **identity: Any) -> Manifest:
        defaults = {"fingerprint": "f", "vocab_size": 1000, "bos_id": None, "eos_id": 0, "eod_id": 0}
        policy = {"prepend_bos": False, "append_eod": True}
        tokenizer = TokenizerIdentity(**{**defaults, **policy, **identity})
        with IndexedDatasetWriter(prefix, tokenizer.vocab_size) as writer:
            writer.add_documents(ragged([np.array(document, np.int64) for document in documents]))
            bin_hashes, idx_hashes = writer.finish()
            writer.commit()
        manifest = Manifest(
            tokenizer=tokenizer,
            dtype=writer.dtype,
            documents=writer.documents,
            tokens=writer.tokens,
            text_bytes=4 * writer.tokens,
            dropped={},
            bin=bin_hashes,
            idx=idx_hashes,
            settings={},
            inputs=(),
            created_by="test",
        )
        manifest.write(prefix)
        return manifest

    return write
