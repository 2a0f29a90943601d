"""The plan of a blend: what each source gives to a run, before the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import exp
from pathlib import Path
from typing import Any

from data_prep.blend import mistakes
from data_prep.blend.checks import Checks, write_plan
from data_prep.blend.file import resolve_run
from data_prep.blend.history import write_blend
from data_prep.blend.model import Blend, BlendSource
from data_prep.blend.packed import packed, packing_flags
from data_prep.settings import BlendSettings

# Muennighoff et al. 2023 (arXiv 2305.16264), R*_D: repeats after which repeated data is worth 1 - 1/e of fresh.
REPEAT_DECAY = 15.4


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One source, in a phase or in all.  Those from `samples_drawn` to `effective_tokens` need the length of the run.

    `weight` as given, in `unit`, which is a mode's name where a mode decided (`weight` is the share then); of the
    whole run, that of the first phase which draws it.  `share` of samples, and so of tokens.  `tokens` and `sequences`
    are those that the run uses, fewer than there are in a proxy run.  `tokens_drawn` counts the tokens that are
    predicted, padding and first tokens not among them.  `epochs` is fractional; `effective_tokens` counts what is drawn
    again at what it is worth, from the run's begin to the end of the row.  `packing` is what packed.py tells,
    in the rows of the whole run.
    """

    source: str
    documents: int
    tokens: int
    weight: float
    share: float
    sequences: int
    samples_drawn: int | None
    tokens_drawn: int | None
    epochs: float | None
    effective_tokens: float | None
    flags: tuple[str, ...]
    kind: str = "raw"
    unit: str = "weight"
    packing: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class PhasePlan:
    """One phase; `samples` is None where the run has no known end."""

    name: str
    first_sample: int
    samples: int | None
    rows: tuple[PlanRow, ...]


@dataclass(frozen=True, slots=True)
class PlanTable:
    """A row for each source, in the order of the blend; `proxy_of` [samples] is the run that a proxy stands for."""

    blend_hash: str
    seq_length: int
    train_samples: int | None
    rows: tuple[PlanRow, ...]
    phases: tuple[PhasePlan, ...] = ()
    notes: tuple[str, ...] = ()
    proxy_of: int | None = None

    @property
    def epochs(self) -> dict[str, float]:
        """Source -> passes over it, of a run of known length."""
        return {row.source: row.epochs for row in self.rows if row.epochs is not None}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Caps:
    """Epochs that draw a warning: for all sources, and for some of their own."""

    all: float
    own: Mapping[str, float] = field(default_factory=dict)


def plan(
    settings: BlendSettings, out_dir: Path, base_dir: Path = Path(), tokenizer_dir: Path | None = None
) -> PlanTable:
    """Resolves the blend, writes out_dir/blend.json and out_dir/plan.json, and gives the plan.

    Pack tables go beside their datasets; a blend.json that stands there and is unlike stays as blend.HASH.json.
    Prefixes are relative to `base_dir`.  Errors: as `resolve`, and a UserError for a mistake (mistakes.py) that
    `settings.allow` does not name.
    """
    run = resolve_run(settings, base_dir, tokenizer_dir)
    checks = Checks.of(settings, base_dir)
    notes = mistakes.notes(run.blend, checks) + mistakes.proxy_notes(run)
    caps = (checks.max_epochs, checks.own_epochs)
    table = plan_table(run.blend, run.samples, *caps, notes=notes, proxy_of=run.proxy_of)
    mistakes.check_epochs(table.epochs, checks)
    table = replace(table, notes=notes + mistakes.check_texts(run.blend, checks))
    table = with_packing(replace(table, notes=table.notes + _split_notes(run.blend, settings)), run.blend)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_blend(run.blend, out_dir / "blend.json")
    write_plan(out_dir / "plan.json", table.to_json(), checks)
    return table


def with_packing(table: PlanTable, blend: Blend) -> PlanTable:
    """The plan with what packing made of the sources, in the rows of the whole run; reads their tables and spans."""
    rows = []
    for row, source in zip(table.rows, blend.sources, strict=True):
        found = packed(source, blend.seq_length)
        rows.append(replace(row, packing=found, flags=row.flags + packing_flags(source, found)))
    return replace(table, rows=tuple(rows))


def _split_notes(blend: Blend, settings: BlendSettings) -> tuple[str, ...]:
    if blend.split is None:
        return ()
    # Imported here: pyarrow is heavy, and a run that only reads a blend does not need it.
    from data_prep.blend.split_checks import split_notes

    return split_notes(blend, settings)


def plan_table(
    blend: Blend,
    train_samples: int | None,
    max_epochs: float,
    own: Mapping[str, float] | None = None,
    *,
    notes: tuple[str, ...] = (),
    proxy_of: int | None = None,
) -> PlanTable:
    """The plan as a pure function of the blend, the run's length [samples] and the epochs that draw a warning.

    `own` are the limits of single sources.
    """
    caps = Caps(max_epochs, own or {})
    starts = [phase.first_sample for phase in blend.phases]
    ends = [*starts[1:], train_samples]
    phases = tuple(_phase(blend, index, end, caps) for index, end in enumerate(ends))
    if len(phases) == 1:
        rows = phases[0].rows
    else:
        counts = blend.schedule.counts(train_samples) if train_samples else None
        rows = tuple(_whole(blend, index, counts, caps) for index in range(len(blend.sources)))
    rows = tuple(rows)
    return PlanTable(blend.hash, blend.seq_length, train_samples, rows, phases, notes, proxy_of)


def effective_tokens(tokens: float, epochs: float) -> float:
    """What `epochs` passes over `tokens` are worth in fresh tokens: U + U*R* * (1 - exp(-R / R*)).

    U is the unique tokens drawn, R the repeats beyond the first epoch (Muennighoff et al. 2023, eq. 5).
    """
    unique, repeats = tokens * min(epochs, 1.0), max(epochs - 1.0, 0.0)
    return unique + unique * REPEAT_DECAY * (1 - exp(-repeats / REPEAT_DECAY))


def _phase(blend: Blend, index: int, end: int | None, caps: Caps) -> PhasePlan:
    """The rows of one phase, which ends before sample `end`."""
    phase = blend.phases[index]
    first = phase.first_sample
    end = None if end is None else max(end, first)
    before = blend.schedule.counts(first)
    until = [None] * len(before) if end is None else blend.schedule.counts(end)
    rows = []
    for source, share, start, stop, amount in zip(
        blend.sources, phase.shares, before, until, _amounts(blend, index), strict=True
    ):
        drawn = None if stop is None else stop - start
        rows.append(_row(source, share / sum(phase.shares), drawn, start, amount, blend.seq_length, caps))
    return PhasePlan(phase.name or f"phase {index + 1}", first, None if end is None else end - first, tuple(rows))


def _whole(blend: Blend, index: int, counts: Sequence[int] | None, caps: Caps) -> PlanRow:
    """A source over all phases; without a length its share is that of the last phase."""
    drawn = counts[index] if counts else None
    last = blend.phases[-1].shares
    share = last[index] / sum(last) if drawn is None or counts is None else drawn / sum(counts)
    first = next(number for number, phase in enumerate(blend.phases) if phase.shares[index])
    return _row(blend.sources[index], share, drawn, 0, _amounts(blend, first)[index], blend.seq_length, caps)


def _amounts(blend: Blend, phase: int) -> list[tuple[str, float]]:
    """(unit, number) of each source in a phase, as given."""
    if not blend.phases[phase].amounts:  # format 1 had one weight a source
        return [("weight", source.weight or 0.0) for source in blend.sources]
    return [amount or ("weight", 0.0) for amount in blend.phases[phase].amounts]


def _row(
    source: BlendSource,
    share: float,
    drawn: int | None,
    before: int,
    amount: tuple[str, float],
    seq_length: int,
    caps: Caps,
) -> PlanRow:
    # A pass over N sequences predicts fewer tokens than N * seq_length: not the first, and not what chains mask.
    used = source.sequences / source.of_sequences
    tokens, labels = round(source.tokens * used), (source.labels or source.tokens - 1) * used
    epochs = None if drawn is None else drawn / source.sequences
    until = None if drawn is None else (before + drawn) / source.sequences
    return PlanRow(
        source=source.name,
        documents=source.documents,
        tokens=tokens,
        weight=amount[1],
        share=share,
        sequences=source.sequences,
        samples_drawn=drawn,
        tokens_drawn=None if epochs is None else round(epochs * labels),
        epochs=epochs,
        effective_tokens=None if until is None else effective_tokens(labels, until),
        flags=_flags(source, until, seq_length, caps),
        kind=source.kind,
        unit=amount[0],
    )


def _flags(source: BlendSource, epochs: float | None, seq_length: int, caps: Caps) -> tuple[str, ...]:
    flags = []
    if source.tokens <= seq_length:
        flags.append(f"under one sequence: {source.tokens} tokens of {seq_length + 1}, the rest is padding")
    if source.sequences < source.of_sequences:
        flags.append(f"shrunk to {source.sequences:,} of {source.of_sequences:,} sequences")
    limit = caps.own.get(source.name, caps.all)
    if epochs is not None and epochs > limit:
        flags.append(f"{epochs:.2f} epochs, more than max_epochs {limit:g}")
    return tuple(flags)
