"""What a blend is: sources and phases, and which sample comes from where.

Phases are append-only: `Blend.past` is the blend before its last phases came, with the hash it had then.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from data_prep.blend.schedule import Schedule
from data_prep.manifest import TokenizerIdentity, content_hash, write_json
from data_prep.order import Permutation
from data_prep.packing.table import PACK_FORMAT_VERSION
from data_prep.settings import LossPolicy, SourceKind, SourcePolicy, SplitSettings

BLEND_FORMAT_VERSION: Final = 2
UNENDING: Final = 2**63
_NOT_SAMPLES = {"prefix", "weight", "pack", "kind", "pack_sequences", "labels", "validation"}
_SINCE_FORMAT_2 = {"loss", "policy"}


class ValidationSet(BaseModel):
    """The documents of a source that its blend's split sets apart.  `tokens` and `text_bytes` are of all of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pack: str = Field(description="file name of their pack table beside the dataset")
    sequences: int = Field(ge=1)
    documents: int = Field(ge=1)
    tokens: int = Field(ge=2)
    text_bytes: int = Field(ge=1)


class BlendSource(BaseModel):
    """One dataset of a blend.  `prefix` is absolute in memory and relative to blend.json on disk.

    `documents` and `tokens` are those that are trained on: with a split, of its training side.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    prefix: Path
    kind: SourceKind = "raw"
    loss: LossPolicy = "all"
    policy: SourcePolicy = "concatenate"
    documents: int = Field(ge=1)
    tokens: int = Field(ge=2)
    data_hash: str
    lineage_hash: str | None = Field(None, description="of the lineage, where pack tables were made from it")
    pack: str = Field(description="file name of the pack table beside the dataset")
    sequences: int = Field(ge=1, description="samples of one epoch, the first of its pack table")
    labels: int | None = Field(None, ge=1, description="tokens predicted in an epoch; None: all but the first")
    validation: ValidationSet | None = None
    pack_sequences: int | None = Field(None, ge=1, description="sequences of the pack table; None: the same")
    weight: float | None = Field(None, description="format 1: weight as given")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sequences > self.of_sequences:
            raise ValueError(f"{self.sequences} sequences of {self.of_sequences}")
        return self

    @property
    def of_sequences(self) -> int:
        """All sequences of the pack table; a proxy run uses fewer."""
        return self.pack_sequences or self.sequences


class BlendPhase(BaseModel):
    """From `first_sample` on, each period of sum(shares) samples holds shares[s] of source s.

    `amounts` are what the shares were made from: (unit, number), None for a source that gives nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    first_sample: int = Field(ge=0)
    shares: tuple[int, ...]
    name: str = ""
    amounts: tuple[tuple[str, float] | None, ...] = ()


class Ancestor(BaseModel):
    """An earlier blend whose first `samples` samples are those of this one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    blend_hash: str
    samples: int = Field(ge=0)


class Place(NamedTuple):
    """Where sample i comes from: source (its index), epoch of that source, sequence of its pack table."""

    source: int
    epoch: int
    sequence: int


class Blend(BaseModel):
    """A resolved blend; `locate` is the run's data order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1, 2] = BLEND_FORMAT_VERSION
    seq_length: int = Field(ge=2)
    seed: int
    tokenizer: TokenizerIdentity
    sources: tuple[BlendSource, ...] = Field(min_length=1)
    phases: tuple[BlendPhase, ...] = Field(min_length=1)
    ancestors: tuple[Ancestor, ...] = ()
    split: SplitSettings | None = None
    _folder: Path | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for phase in self.phases:
            if len(phase.shares) != len(self.sources) or min(phase.shares) < 0 or sum(phase.shares) < 1:
                raise ValueError(f"shares {phase.shares} do not fit {len(self.sources)} sources")
        starts = [phase.first_sample for phase in self.phases]
        if starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"phases start at {starts}, not in rising order from 0")
        for source, *shares in zip(self.sources, *(phase.shares for phase in self.phases), strict=True):
            if not any(shares):
                raise ValueError(f"source '{source.name}' is drawn in no phase")
        return self

    @property
    def folder(self) -> Path | None:
        """Where its blend.json was read; None for one that was made here."""
        return self._folder

    @cached_property
    def hash(self) -> str:
        """Identity of the sample sequence: equal blends give equal samples, wherever their files lie."""
        return self._hash(self.format_version)

    def _hash(self, version: int) -> str:
        fields = _NOT_SAMPLES | (_SINCE_FORMAT_2 if version == 1 else set())
        unlike: Any = {"sources": {"__all__": fields}, "phases": {"__all__": {"name", "amounts"}}, "ancestors": True}
        if version == 1:
            unlike["split"] = True
        # Pack tables of another format hold other sequences; those of blends of format 1 were of the first.
        packed = {"pack_format": PACK_FORMAT_VERSION} if version > 1 else {}
        content = self.model_dump(mode="json", exclude=unlike)
        content["sources"] = [_without_none(row, "lineage_hash") for row in content["sources"]]
        return content_hash({**content, "format_version": version, **packed})

    def with_changes(self, **changes: Any) -> Blend:
        """A copy, checked again.  (`model_copy` would take the cached hash and schedule along.)"""
        return Blend(**{**{name: getattr(self, name) for name in Blend.model_fields}, **changes})

    def past(self, phases: int) -> Blend:
        """The blend of the first `phases` phases: without the sources that only later ones draw."""
        kept = self.phases[:phases]
        drawn = [any(phase.shares[index] for phase in kept) for index in range(len(self.sources))]
        cut = [phase.model_copy(update={"shares": _where(phase.shares, drawn), "amounts": ()}) for phase in kept]
        return self.with_changes(sources=_where(self.sources, drawn), phases=tuple(cut), ancestors=())

    def same_until(self, blend_hash: str) -> int | None:
        """Samples that this blend has in common with the one of `blend_hash`, as far as it is known to continue it.

        UNENDING if both give the same samples, None if nothing is known.
        """
        for phases in range(len(self.phases), 0, -1):
            if blend_hash == self.past(phases).hash:
                return UNENDING if phases == len(self.phases) else self.phases[phases].first_sample
        known = [ancestor.samples for ancestor in self.ancestors if ancestor.blend_hash == blend_hash]
        return max(known, default=None)

    def continues(self, blend_hash: str, consumed: int) -> bool:
        """Whether a run that has consumed `consumed` samples of the blend of `blend_hash` may go on with this one."""
        same = self.same_until(blend_hash)
        return same is not None and same >= consumed

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


def _without_none(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name or value is not None}


def _where[T](values: tuple[T, ...], kept: list[bool]) -> tuple[T, ...]:
    return tuple(value for value, keep in zip(values, kept, strict=True) if keep)
