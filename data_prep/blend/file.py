"""blend.json: the resolved blend, all that sample i of a run depends on.

    BlendSettings --resolve--> Blend (manifests verified, packs built) --write--> blend.json --read--> Blend

Its `hash` covers what the samples are made of and leaves out where files lie, so that data may be
moved; paths are kept relative to blend.json.  A checkpoint's data state is (hash, samples consumed).
Format 2 adds to format 1 what a source holds (kind, loss, policy), how many of its sequences are used, amounts as given
and earlier blends.  Format 1 is read, under its old hash; its pack tables are refused, as their order was another one.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from data_prep import packing
from data_prep.blend.model import BLEND_FORMAT_VERSION, Blend, BlendPhase, BlendSource, Place, ValidationSet
from data_prep.blend.packed import check_spans
from data_prep.blend.phases import Resolved, schedule_run
from data_prep.errors import UserError
from data_prep.indexing.reader import IndexedDatasetReader, open_dataset
from data_prep.indexing.verify import verify
from data_prep.manifest import Manifest, TokenizerIdentity, read_hashed_json, read_manifest
from data_prep.settings import BlendSettings, LossPolicy, SourceKind, SourceSettings

__all__ = [
    "Blend",
    "BlendPhase",
    "BlendSource",
    "Place",
    "open_source",
    "open_validation",
    "pack_paths",
    "pack_source",
    "read_blend",
    "resolve",
    "resolve_run",
]
_MEND = "run `ipt blend plan` again"


def resolve(settings: BlendSettings, base_dir: Path, tokenizer_dir: Path | None = None) -> Blend:
    """Opens and verifies every dataset whole, builds the pack tables that are missing, and fixes the shares.

    Prefixes are relative to `base_dir`.  Errors: a UserError for a missing, stale or damaged
    dataset, one shorter than a sequence, datasets of unlike tokenizers or BOS/EOD policies, a
    `tokenizer_dir` unlike them, amounts that contradict each other, and an amount too small for one
    sample in a period.
    """
    return resolve_run(settings, base_dir, tokenizer_dir).blend


def resolve_run(settings: BlendSettings, base_dir: Path, tokenizer_dir: Path | None = None) -> Resolved:
    """As `resolve`, with the length of the run."""
    if not settings.sources:
        raise UserError("sources", "a blend needs a source", "name one with its prefix and weight")
    prefixes = {name: _prefix(name, source, base_dir) for name, source in settings.sources.items()}
    manifests = {name: read_manifest(prefix) for name, prefix in prefixes.items()}
    tokenizer = _one_tokenizer(manifests)
    if tokenizer_dir:
        # Imported here: only a plan needs the tokenizers library, a run does not.
        from data_prep.indexing.tokenizer import check_tokenizer

        check_tokenizer(tokenizer_dir, tokenizer, next(iter(prefixes.values())))
    short = "short_source" in settings.allow
    for name, manifest in manifests.items():
        if not short:
            _check_length(name, manifest.tokens, settings.seq_length)
    for name, manifest in manifests.items():
        check_spans(name, settings.sources[name], manifest)
    for prefix in prefixes.values():
        verify(prefix)  # reads every byte, so what is refused at a glance comes first
    spec = packing.PackSpec(settings.seq_length, settings.seed, split=settings.split)
    sources = []
    for (name, of), manifest in zip(settings.sources.items(), manifests.values(), strict=True):
        its, workers = replace(spec, policy=of.policy), settings.workers
        sources.append(pack_source(name, prefixes[name], manifest, its, of.kind, of.loss, workers, short))
    return schedule_run(settings, tokenizer, sources)


def read_blend(path: Path) -> Blend:
    """The blend in blend.json, its prefixes made absolute.

    Errors: a UserError naming the file if it is missing, damaged, edited or of a newer format.
    """
    if not path.is_file():
        raise UserError(path, "no such blend", "write it with `ipt blend plan`")
    content = read_hashed_json(path, BLEND_FORMAT_VERSION, _MEND)
    recorded = content.pop("blend_hash", None)
    try:
        blend = Blend.model_validate(content)
    except ValidationError as error:
        raise UserError(path, f"not a blend: {error}", _MEND) from error
    folder = path.parent.resolve()
    sources = tuple(
        source.model_copy(update={"prefix": Path(os.path.normpath(folder / source.prefix))}) for source in blend.sources
    )
    blend = blend.model_copy(update={"sources": sources})
    blend._folder = folder
    if blend.hash != recorded:
        raise UserError(path, "its blend hash is not that of its content", _MEND)
    return blend


def open_source(source: BlendSource) -> tuple[IndexedDatasetReader, packing.PackTable]:
    """Documents and pack table of a source, once the dataset is found to be the one the blend was planned with.

    Checks what opening can afford: manifest, sizes, first and last blocks.  Errors: a UserError
    naming the file that is missing, damaged or written since.
    """
    return _open_dataset(source), _open_table(source, source.pack, source.of_sequences)


def pack_source(
    name: str,
    prefix: Path,
    manifest: Manifest,
    spec: packing.PackSpec,
    kind: SourceKind,
    loss: LossPolicy = "all",
    workers: int = 0,
    short: bool = False,
) -> BlendSource:
    """A source with its pack tables, built where they are missing; with a split, one of each side.

    Errors: a UserError for one that packs fewer tokens than a sequence and its label, unless it may be `short`.
    """
    table = packing.pack(prefix, manifest, spec, workers)
    if not short:
        side = " on the training side of the split" if spec.split else ""
        _check_length(name, table.report.tokens, spec.seq_length, side)
    whole = spec.split is None and spec.policy == "concatenate"
    return BlendSource(
        name=name,
        prefix=prefix,
        kind=kind,
        loss=loss,
        policy=spec.policy,
        documents=manifest.documents if whole else table.report.documents,
        tokens=manifest.tokens if whole else table.report.tokens,
        labels=None if whole else table.report.labels,
        data_hash=manifest.data_hash,
        lineage_hash=packing.lineage_read(manifest, spec),
        pack=table.path.name,
        sequences=table.sequences,
        validation=_validation(prefix, manifest, spec) if spec.split else None,
    )


def _validation(prefix: Path, manifest: Manifest, spec: packing.PackSpec) -> ValidationSet | None:
    """The validation side of a dataset; None where it has no document of it."""
    # Imported here: pyarrow is heavy, and a run that only reads a blend does not need it.
    from data_prep.indexing.lineage import read_text_bytes
    from data_prep.packing.splits import sides_of

    assert spec.split is not None
    there = sides_of(prefix, spec.split) == packing.SIDES.index("validation")
    if not there.any():
        return None
    table = packing.pack(prefix, manifest, replace(spec, policy="concatenate", side="validation"))
    return ValidationSet(
        pack=table.path.name,
        sequences=table.sequences,
        documents=table.report.documents,
        tokens=table.report.tokens,
        text_bytes=int(read_text_bytes(prefix)[there].sum()),
    )


def open_validation(source: BlendSource) -> tuple[IndexedDatasetReader, packing.PackTable]:
    """Documents and pack table of a source's validation set, which it must have.  Errors: as `open_source`."""
    assert source.validation is not None
    reader = _open_dataset(source)
    return reader, _open_table(source, source.validation.pack, source.validation.sequences)


def pack_paths(blend: Blend) -> list[Path]:
    """The pack tables of a blend, those of validation sets too: each once, the largest first.

    Errors: a UserError for one that is missing.
    """
    found = {source.prefix.with_name(source.pack) for source in blend.sources}
    found |= {source.prefix.with_name(source.validation.pack) for source in blend.sources if source.validation}
    sizes = {path: packing.open_pack(path).path.stat().st_size for path in found}
    return sorted(found, key=lambda path: (-sizes[path], path))


def _open_dataset(source: BlendSource) -> IndexedDatasetReader:
    manifest, reader = open_dataset(source.prefix)
    if manifest.data_hash != source.data_hash:
        problem = f"the dataset was written again after the blend was planned (source '{source.name}')"
        raise UserError(source.prefix, problem, "restore it, or give grown data a prefix and a name of its own")
    if source.lineage_hash is not None and manifest.lineage_hash != source.lineage_hash:
        problem = f"its documents' lineage was written again after the blend was planned (source '{source.name}')"
        raise UserError(source.prefix, problem, "restore it, or plan again: what the tables were made from has changed")
    return reader


def _open_table(source: BlendSource, name: str, sequences: int) -> packing.PackTable:
    table = packing.open_pack(source.prefix.with_name(name))
    if table.sequences != sequences:
        raise UserError(table.path, f"{table.sequences} sequences where the blend has {sequences}", _MEND)
    return table


def _prefix(name: str, source: SourceSettings, base_dir: Path) -> Path:
    if source.prefix is None:
        raise UserError(f"sources.{name}.prefix", "no dataset is named", "give the prefix of PREFIX.bin and PREFIX.idx")
    return (base_dir / source.prefix).resolve()


def _one_tokenizer(manifests: dict[str, Manifest]) -> TokenizerIdentity:
    """The tokenizer and policy all datasets share; a UserError naming two that differ, and in what."""
    (first, reference), *others = ((name, manifest.tokenizer) for name, manifest in manifests.items())
    for name, identity in others:
        unlike = [field for field, value in reference if getattr(identity, field) != value]
        if unlike:
            told = ", ".join(f"{field} {getattr(reference, field)} and {getattr(identity, field)}" for field in unlike)
            mend = "index them with one tokenizer and one policy"
            raise UserError(f"sources '{first}' and '{name}'", f"were tokenized unlike: {told}", mend)
    return reference


def _check_length(name: str, tokens: int, seq_length: int, side: str = "") -> None:
    if tokens <= seq_length:
        problem = f"{tokens} tokens{side}, shorter than a sequence and its label ({seq_length + 1})"
        mend = "merge it with another source, or say allow: [short_source] to have the rest padded"
        raise UserError(f"sources.{name}", problem, mend)
