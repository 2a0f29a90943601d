"""Datasets -> one dataset with their documents in order: shards of one corpus, or what a user puts together.

They must agree in tokenizer, dtype, and policy on BOS and EOD.  Everything streams: memory does not grow with size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from data_prep.errors import UserError
from data_prep.indexing.lineage import lineage_groups
from data_prep.indexing.parts import DatasetWriter
from data_prep.indexing.reader import IndexedDatasetReader
from data_prep.indexing.spans import Runs, SpansReader, plain_runs
from data_prep.indexing.verify import verify
from data_prep.manifest import InputFile, Manifest, package_version, read_manifest


def merge(
    prefixes: Sequence[Path],
    out: Path,
    settings: dict[str, Any] | None = None,
    inputs: Sequence[InputFile] | None = None,
    dropped: Mapping[str, int] | None = None,
    check: bool = True,
) -> Manifest:
    """Writes the dataset `out`, and gives its manifest.

    `settings` and `inputs` are recorded in it; by default those of the datasets, one after the other.  `dropped` is
    added to what the datasets dropped.  Without `check` they are taken as whole (see `verify`).
    Errors: a UserError naming a dataset that is damaged, or unlike the first, and in what.
    """
    if not prefixes:
        raise UserError(out, "there is nothing to merge", "name two datasets or more")
    if out.resolve() in [prefix.resolve() for prefix in prefixes]:
        raise UserError(out, "it is one of the datasets to merge", "give another prefix")
    manifests = [read_manifest(prefix) for prefix in prefixes]
    first, with_spans = manifests[0], any(manifest.spans for manifest in manifests)
    for prefix, manifest in zip(prefixes, manifests, strict=True):
        _check_alike(prefix, manifest, prefixes[0], first)
        if with_spans and not manifest.spans and manifest.settings.get("spans") is False:
            problem = "it was indexed without spans, so the classes of its tokens are not known, and another has them"
            raise UserError(prefix, problem, "index it again with spans")
    if check:
        for prefix in prefixes:
            verify(prefix)
    all_dropped = Counter[str](dropped or {})
    with DatasetWriter(out, first.tokenizer.vocab_size) as writer:
        for prefix, manifest in zip(prefixes, manifests, strict=True):
            _copy(prefix, manifest, writer, with_spans)
            all_dropped.update(manifest.dropped)
        files = writer.finish(with_spans)
        merged = Manifest(
            tokenizer=first.tokenizer,
            documents=writer.documents,
            tokens=writer.tokens,
            text_bytes=sum(manifest.text_bytes for manifest in manifests),
            lost_characters=sum(manifest.lost_characters for manifest in manifests),
            lossy_documents=sum(manifest.lossy_documents for manifest in manifests),
            dropped=dict(all_dropped),
            **files,
            encoder=", ".join(sorted({manifest.encoder for manifest in manifests})),
            settings=first.settings if settings is None else settings,
            inputs=tuple(file for manifest in manifests for file in manifest.inputs) if inputs is None else inputs,
            created_by=package_version(),
        )
        writer.commit(merged)
    return merged


_NAMES = {"fingerprint": "tokenizer's fingerprint"}


def _check_alike(prefix: Path, manifest: Manifest, first_prefix: Path, first: Manifest) -> None:
    names = {"dtype": (manifest.dtype, first.dtype)}
    ours, theirs = manifest.tokenizer.model_dump(), first.tokenizer.model_dump()
    names |= {name: (ours[name], theirs[name]) for name in ours}
    for name, (here, there) in names.items():
        if here != there:
            problem = f"its {_NAMES.get(name, name)} is {here}, and that of {first_prefix} is {there}"
            raise UserError(prefix, problem, "index both with the same tokenizer and settings")


def _copy(prefix: Path, manifest: Manifest, writer: DatasetWriter, spans: bool) -> None:
    """Appends a dataset, part by part; its runs too where the merged one has `spans`."""
    # One is open at a time: a corpus may have more shards than a process may have files.
    reader, rows, moved_by = IndexedDatasetReader(prefix), 0, writer.tokens
    writer.add_ids(reader)
    if spans:
        for runs in _runs(prefix, manifest, reader):
            writer.add_runs(runs)
    for group in lineage_groups(prefix):
        place = group.schema.get_field_index("first_token")
        moved = pc.add(group["first_token"], moved_by)
        writer.add_lineage(group.set_column(place, group.schema.field(place), moved))
        rows += group.num_rows
    if rows != reader.documents:
        problem = f"its lineage has {rows} rows where it has {reader.documents} documents"
        raise UserError(prefix, problem, "write the dataset again with `ipt data index`")


def _runs(prefix: Path, manifest: Manifest, reader: IndexedDatasetReader) -> Iterator[Runs]:
    policy, spans = manifest.tokenizer, SpansReader(prefix) if manifest.spans else None
    for start, lengths in reader.chunks():
        if spans:
            yield spans.runs_of(start, start + len(lengths))
        else:
            yield plain_runs(lengths, int(policy.prepend_bos), int(policy.append_eod))
