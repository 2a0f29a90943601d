"""blend.json: the resolved blend, all that sample i of a run depends on.

    BlendSettings --resolve--> Blend (manifests verified, packs built) --write--> blend.json --read--> Blend

Its `hash` covers what the samples are made of and leaves out where files lie, so that data may be
moved; paths are kept relative to blend.json.  A checkpoint's data state is (hash, samples consumed).
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_prep import packing
from data_prep.blend.schedule import Schedule
from data_prep.blend.weights import integer_shares
from data_prep.errors import UserError
from data_prep.indexing.reader import IndexedDatasetReader, open_dataset
from data_prep.indexing.verify import verify
from data_prep.manifest import (
    Manifest,
    TokenizerIdentity,
    content_hash,
    read_hashed_json,
    read_manifest,
    write_json,
)
from data_prep.order import Permutation
from data_prep.settings import BlendSettings, SourceSettings

BLEND_FORMAT_VERSION: Final = 1
_MEND = "run `ipt blend plan` again"


class BlendSource(BaseModel):
    """One dataset of a blend.  `prefix` is absolute in memory and relative to blend.json on disk."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    prefix: Path
    weight: float = Field(gt=0)
    documents: int = Field(ge=1)
    tokens: int = Field(ge=2)
    data_hash: str
    pack: str = Field(description="file name of the pack table beside the dataset")
    sequences: int = Field(ge=1, description="samples of one epoch")


class BlendPhase(BaseModel):
    """From `first_sample` on, each period of sum(shares) samples holds shares[s] of source s."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first_sample: int = Field(ge=0)
    shares: tuple[int, ...]


class Place(NamedTuple):
    """Where sample i comes from: source (its index), epoch of that source, sequence of its pack table."""

    source: int
    epoch: int
    sequence: int


class Blend(BaseModel):
    """A resolved blend; `locate` is the run's data order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = BLEND_FORMAT_VERSION
    seq_length: int = Field(ge=2)
    seed: int
    tokenizer: TokenizerIdentity
    sources: tuple[BlendSource, ...] = Field(min_length=1)
    phases: tuple[BlendPhase, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for phase in self.phases:
            if len(phase.shares) != len(self.sources) or min(phase.shares) < 0 or sum(phase.shares) < 1:
                raise ValueError(f"shares {phase.shares} do not fit {len(self.sources)} sources")
        starts = [phase.first_sample for phase in self.phases]
        if starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"phases start at {starts}, not in rising order from 0")
        return self

    @cached_property
    def hash(self) -> str:
        """Identity of the sample sequence: equal blends give equal samples, wherever their files lie."""
        unlike = {"sources": {"__all__": {"prefix", "weight", "pack"}}}
        return content_hash(self.model_dump(mode="json", exclude=unlike))

    @cached_property
    def schedule(self) -> Schedule:
        """The phases laid out; made once."""
        schedule = Schedule(len(self.sources))
        for phase in self.phases:
            schedule.append(phase.first_sample, phase.shares)
        return schedule

    def locate(self, sample: int) -> Place:
        """Where sample `sample` (from 0, without end) comes from.  O(1); an IndexError below 0."""
        source, ordinal = self.schedule.draw(sample)
        epoch, index = divmod(ordinal, self.sources[source].sequences)
        order = Permutation(self.sources[source].sequences, self.seed, self.sources[source].name, epoch)
        return Place(source, epoch, order[index])

    def check_tokenizer(self, directory: Path) -> None:
        """A UserError unless the tokenizer in `directory` is the one that the data was written with."""
        # Imported here: a run whose model brings no tokenizer does not need the tokenizers library.
        from data_prep.indexing.tokenizer import check_tokenizer

        check_tokenizer(directory, self.tokenizer, self.sources[0].prefix)

    def write(self, path: Path) -> None:
        """Writes blend.json with the hash of its content, prefixes relative to its folder."""
        folder = path.parent.resolve()
        content = self.model_dump(mode="json")
        for row, source in zip(content["sources"], self.sources, strict=True):
            row["prefix"] = Path(os.path.relpath(source.prefix, folder)).as_posix()
        content["blend_hash"] = self.hash
        write_json(path, {**content, "hash": content_hash(content)})


def resolve(settings: BlendSettings, base_dir: Path, tokenizer_dir: Path | None = None) -> Blend:
    """Opens and verifies every dataset whole, builds the pack tables that are missing, and fixes the shares.

    Prefixes are relative to `base_dir`.  Errors: a UserError for a missing, stale or damaged
    dataset, datasets of unlike tokenizers or BOS/EOD policies, a `tokenizer_dir` unlike them, and a
    weight too small for one sample in a period.
    """
    if not settings.sources:
        raise UserError("sources", "a blend needs a source", "name one with its prefix and weight")
    prefixes = {name: _prefix(name, source, base_dir) for name, source in settings.sources.items()}
    manifests = {name: read_manifest(prefix) for name, prefix in prefixes.items()}
    tokenizer = _one_tokenizer(manifests)
    if tokenizer_dir:
        # Imported here: only a plan needs the tokenizers library, a run does not.
        from data_prep.indexing.tokenizer import check_tokenizer

        check_tokenizer(tokenizer_dir, tokenizer, next(iter(prefixes.values())))
    for prefix in prefixes.values():
        verify(prefix)  # reads every byte, so what is refused at a glance comes first
    sources = []
    for name, manifest in manifests.items():
        table = packing.pack(prefixes[name], manifest, packing.PackSpec(settings.seq_length, settings.seed))
        sources.append(
            BlendSource(
                name=name,
                prefix=prefixes[name],
                weight=settings.sources[name].weight,
                documents=manifest.documents,
                tokens=manifest.tokens,
                data_hash=manifest.data_hash,
                pack=table.path.name,
                sequences=table.sequences,
            )
        )
    return Blend(
        seq_length=settings.seq_length,
        seed=settings.seed,
        tokenizer=tokenizer,
        sources=tuple(sources),
        phases=(BlendPhase(first_sample=0, shares=_shares(settings)),),
    )


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
    if blend.hash != recorded:
        raise UserError(path, "its blend hash is not that of its content", _MEND)
    return blend


def open_source(source: BlendSource) -> tuple[IndexedDatasetReader, packing.PackTable]:
    """Documents and pack table of a source, once the dataset is found to be the one the blend was planned with.

    Checks what opening can afford: manifest, sizes, first and last blocks.  Errors: a UserError
    naming the file that is missing, damaged or written since.
    """
    manifest, reader = open_dataset(source.prefix)
    if manifest.data_hash != source.data_hash:
        problem = f"the dataset was written again after the blend was planned (source '{source.name}')"
        raise UserError(source.prefix, problem, "restore it, or give grown data a prefix and a name of its own")
    table = packing.open_pack(source.prefix.with_name(source.pack))
    if table.sequences != source.sequences:
        raise UserError(table.path, f"{table.sequences} sequences where the blend has {source.sequences}", _MEND)
    return reader, table


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


def _shares(settings: BlendSettings) -> tuple[int, ...]:
    shares = integer_shares([source.weight for source in settings.sources.values()], settings.period)
    for name, share in zip(settings.sources, shares, strict=True):
        if share == 0:
            problem = f"its weight gives it none of the {settings.period} samples of a period"
            raise UserError(f"sources.{name}.weight", problem, "raise the weight, or the blend's period")
    return tuple(shares)
