"""What is in a dataset: counts, classes, sources, lengths and samples, in one pass of bounded memory."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.indexing.decode import Decoder
from data_prep.indexing.layout import lineage_path
from data_prep.indexing.reader import IndexedDatasetReader, open_dataset
from data_prep.indexing.spans import CLASSES, CONTROL, SpansReader
from data_prep.manifest import Manifest

# Sources counted each by itself; the documents of further ones are counted together.
_SOURCES = 10_000
OTHER_SOURCES = "(other sources)"
PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)


@dataclass(frozen=True, slots=True)
class LengthBin:
    """Documents of [low, high) tokens, and the tokens in them."""

    low: int
    high: int
    documents: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Part:
    """A run of tokens of one class: its ids, and its text where a tokenizer is given."""

    kind: str
    ids: list[int]
    text: str | None


@dataclass(frozen=True, slots=True)
class Sample:
    """The beginning of a document; `tokens` is the length of all of it, `id` is empty without a lineage."""

    document: int
    id: str
    tokens: int
    parts: list[Part]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect` found; `tokens_by_class` has the classes that occur, `documents_by_source` is of the lineage.

    A document made of texts of several sources counts for each of them.
    """

    prefix: str
    documents: int
    tokens: int
    text_bytes: int
    bytes_per_token: float
    dtype: str
    tokenizer: dict[str, Any]
    encoder: str
    dropped: dict[str, int]
    data_hash: str
    tokens_by_class: dict[str, int]
    documents_by_source: dict[str, int]
    percentiles: dict[int, int]
    histogram: list[LengthBin]
    samples: list[Sample]


def inspect(
    prefix: Path, samples: int = 3, seed: int = 0, tokenizer_dir: Path | None = None, sample_tokens: int = 400
) -> Inspection:
    """Looks at the whole dataset at `prefix`, and at the first `sample_tokens` of some drawn documents.

    Errors: a UserError naming a file that is missing or damaged, or a tokenizer that did not write this dataset.
    """
    manifest, reader = open_dataset(prefix)
    decoder = Decoder(tokenizer_dir, manifest, prefix) if tokenizer_dir else None
    spans = SpansReader(prefix) if manifest.spans else None
    if spans:
        spans.check_frame(reader.documents)
    lengths, classes = _count(manifest, reader, spans)
    drawn = sorted(random.Random(seed).sample(range(reader.documents), min(samples, reader.documents)))
    return Inspection(
        prefix=str(prefix),
        documents=manifest.documents,
        tokens=manifest.tokens,
        text_bytes=manifest.text_bytes,
        bytes_per_token=manifest.text_bytes / max(1, manifest.tokens),
        dtype=manifest.dtype,
        tokenizer=manifest.tokenizer.model_dump(),
        encoder=manifest.encoder,
        dropped=dict(manifest.dropped),
        data_hash=manifest.data_hash,
        tokens_by_class={name: count for name, count in zip(CLASSES, classes, strict=True) if count},
        documents_by_source=_sources(prefix) if manifest.lineage else {},
        percentiles=_percentiles(lengths),
        histogram=_histogram(lengths),
        samples=[_sample(manifest, reader, spans, decoder, document, sample_tokens) for document in drawn],
    )


def runs_of_document(
    manifest: Manifest, spans: SpansReader | None, document: int, tokens: int
) -> list[tuple[int, int, str, int]]:
    """(start, end, class, of) of each run of a document of so many tokens; without spans, its policy says them."""
    if spans:
        return list(spans.document(document))
    policy = manifest.tokenizer
    start, end = int(policy.prepend_bos), tokens - int(policy.append_eod)
    runs = [(0, start, "control", -1), (start, end, "text", 0), (end, tokens, "control", -1)]
    return [run for run in runs if run[0] < run[1]]


def _count(
    manifest: Manifest, reader: IndexedDatasetReader, spans: SpansReader | None
) -> tuple[Counter[int], list[int]]:
    """(length -> documents of it, tokens of each class)."""
    lengths, classes = Counter[int](), np.zeros(len(CLASSES), np.int64)
    around = int(manifest.tokenizer.prepend_bos) + int(manifest.tokenizer.append_eod)
    for first, chunk in reader.chunks():
        values, counts = np.unique(chunk, return_counts=True)
        lengths.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        if spans:
            runs = spans.runs_of(first, first + len(chunk), chunk)
            ends = runs.ends + np.repeat(np.cumsum(chunk) - chunk, runs.counts)
            classes += np.bincount(runs.classes, np.diff(ends, prepend=0), len(CLASSES)).astype(np.int64)
            spans.forget_pages()
        else:
            control = int(np.minimum(chunk, around).sum())
            classes[CONTROL] += control
            classes[0] += int(chunk.sum()) - control
        reader.forget_pages()
    return lengths, classes.tolist()


def _sources(prefix: Path) -> dict[str, int]:
    """Documents of each source, the largest first."""
    # Imported here: pyarrow takes longer to import than the rest.
    import pyarrow as pa
    import pyarrow.compute as pc

    from data_prep.indexing.lineage import lineage_groups

    found = Counter[str]()
    for group in lineage_groups(prefix):
        origins = group["origins"].combine_chunks()
        names = pc.struct_field(pc.list_flatten(origins), "source")
        pairs = pa.table({"row": pc.list_parent_indices(origins), "source": names})
        once = pairs.group_by(["row", "source"]).aggregate([])
        for name, count in _value_counts(pc.value_counts(once["source"])):
            found[name if name in found or len(found) < _SOURCES else OTHER_SOURCES] += count
    return dict(found.most_common())


def _value_counts(counts: Any) -> list[tuple[str, int]]:
    return [(row["values"], row["counts"]) for row in counts.to_pylist()]


def _percentiles(lengths: Counter[int]) -> dict[int, int]:
    """The length that so many per cent of the documents do not exceed (nearest rank)."""
    if not lengths:
        return {}
    values = sorted(lengths)
    totals = np.cumsum([lengths[value] for value in values])
    ranks = {percent: max(1, -(-percent * int(totals[-1]) // 100)) for percent in PERCENTILES}
    return {percent: values[int(np.searchsorted(totals, rank))] for percent, rank in ranks.items()}


def _histogram(lengths: Counter[int]) -> list[LengthBin]:
    """Bins of powers of two, from that of the shortest document to that of the longest."""
    documents, tokens = Counter[int](), Counter[int]()
    for length, count in lengths.items():
        documents[length.bit_length()] += count
        tokens[length.bit_length()] += length * count
    bits = range(min(documents), max(documents) + 1) if documents else range(0)
    return [LengthBin(1 << bit >> 1, 1 << bit, documents[bit], tokens[bit]) for bit in bits]


def _sample(
    manifest: Manifest,
    reader: IndexedDatasetReader,
    spans: SpansReader | None,
    decoder: Decoder | None,
    document: int,
    limit: int,
) -> Sample:
    whole = reader.document(document)
    tokens = np.array(whole[:limit])
    runs = runs_of_document(manifest, spans, document, len(whole))
    cut = [(start, min(end, limit), kind) for start, end, kind, _ in runs if start < min(limit, len(tokens))]
    control = np.zeros(len(tokens), bool)
    for start, end, kind in cut:
        control[start:end] = kind == "control"
    text = decoder.decode(tokens, control) if decoder else None
    parts = [
        Part(kind, tokens[start:end].tolist(), text.part(start, min(end, len(tokens))) if text else None)
        for start, end, kind in cut
    ]
    return Sample(document, _id(reader.prefix, document) if manifest.lineage else "", len(whole), parts)


def _id(prefix: Path, document: int) -> str:
    from data_prep.indexing.lineage import read_row

    try:
        return str(read_row(prefix, document)["id"])
    except IndexError:
        from data_prep.errors import UserError

        raise UserError(lineage_path(prefix), f"has no row for document {document}", "see `ipt data verify`") from None
