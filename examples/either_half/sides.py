"""What the three demonstrations share: a dataset of given tokens, Megatron's own classes over it, and a table."""

from __future__ import annotations

import megatron_ipt.mcore.quiet  # noqa: F401  # isort: skip  # what megatron-core and torch say at every import

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from data_prep.indexing.ragged import ragged
from data_prep.indexing.writer import IndexedDatasetWriter
from data_prep.manifest import Manifest, TokenizerIdentity

VOCABULARY = 1 << 20
EOD = 0


def write(prefix: Path, documents: Sequence[Sequence[int]]) -> None:
    """PREFIX.bin and PREFIX.idx, as `ipt data index` and Megatron write them, and the manifest that we keep beside."""
    control = {"bos_id": None, "eos_id": EOD, "eod_id": EOD, "prepend_bos": False, "append_eod": True}
    tokenizer = TokenizerIdentity(fingerprint="numbers", vocab_size=VOCABULARY, **control)
    with IndexedDatasetWriter(prefix, VOCABULARY) as writer:
        writer.add_documents(ragged([np.array(document, np.int64) for document in documents]))
        bin_hashes, idx_hashes = writer.finish()
        writer.commit()
    Manifest(
        tokenizer=tokenizer,
        dtype=writer.dtype,
        documents=writer.documents,
        tokens=writer.tokens,
        text_bytes=writer.tokens,
        dropped={},
        bin=bin_hashes,
        idx=idx_hashes,
        settings={},
        inputs=(),
        created_by="examples/either_half",
    ).write(prefix)


def numbered(first: int, count: int, lengths: tuple[int, int], seed: int) -> list[list[int]]:
    """Documents in which every token but the last, EOD, is a number of its own, from `first` on."""
    drawn = np.random.default_rng(seed).integers(*lengths, count)
    ends = first + np.cumsum(drawn)
    return [[*range(end - length, end), EOD] for end, length in zip(ends.tolist(), drawn.tolist(), strict=True)]


def megatron(
    prefixes: Sequence[Path],
    weights: Sequence[float] | None,
    samples: int,
    seq_length: int,
    cache: Path,
    eod: int = EOD,
    **options: bool,
) -> Any:
    """The training dataset that megatron-core's own builder makes of indexed datasets: its BlendedDataset of
    GPTDatasets, or a GPTDataset alone where there is one prefix."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    choices = {"reset_position_ids": False, "reset_attention_mask": False, "eod_mask_loss": False, **options}
    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=seq_length,
        blend=([str(prefix) for prefix in prefixes], list(weights) if weights else None),
        split="1,0,0",
        create_attention_mask=False,
        path_to_cache=str(cache),
        tokenizer=SimpleNamespace(eod=eod, pad=-1, vocab_size=VOCABULARY, unique_identifiers={}),
        mid_level_dataset_surplus=0.005,
        **choices,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]


def table(title: str, rows: Iterable[tuple[str, object, object]]) -> None:
    """Prints a small table, theirs beside ours."""
    lines = [f"| {title} | Megatron's classes | ours |", "|---|---|---|"]
    print("\n".join([*lines, *(f"| {name} | {theirs} | {ours} |" for name, theirs, ours in rows)]))
