"""Modes: amounts of all sources from their sizes, and the paper's two mixes.

A size is the sequences of one epoch, so that "proportional" is the same number of epochs for each source.  Parts are
exact fractions on any scale; a power is taken in decimal arithmetic of fixed precision, which is the same on every
machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction

from data_prep.errors import UserError
from data_prep.settings import BlendMode, SourceKind

TUNING_EPOCHS = 4
"""Repeats of the synthesizer's tuning data in the paper's mix from scratch (arXiv 2406.14491, section 3)."""
AUGMENTED_TEXTS = Fraction(1, 5)
"""Part of the raw texts that stand in augmented documents there."""

_DECIMAL = Context(prec=40)


@dataclass(frozen=True, slots=True)
class Size:
    """What a mode asks of a source.

    `sequences` of one epoch; `texts`, raw texts inside, several in an augmented document; `max_epochs`, the source's
    cap, or the blend's.
    """

    name: str
    kind: SourceKind
    documents: int
    tokens: int
    sequences: int
    texts: int
    max_epochs: Fraction


def parts_of(
    mode: BlendMode,
    sizes: Sequence[Size],
    length: Fraction | None,
    temperature: Fraction,
    drawn: Sequence[Fraction] | None = None,
) -> list[Fraction]:
    """The part of each source in a phase of `length` samples, on any scale; `drawn` [samples] by the phases before.

    Errors: a UserError where the mode needs the length and there is none, or kinds of sources that are not there.
    """
    match mode:
        case "proportional":
            return [Fraction(size.sequences) for size in sizes]
        case "temperature":
            return [_power(size.sequences, 1 / temperature) for size in sizes]
        case "uniform":
            return [Fraction(1) for _ in sizes]
        case "unimax":
            return unimax(sizes, _needed(length, mode), drawn or [Fraction(0)] * len(sizes))
        case "paper_from_scratch":
            return from_scratch(sizes, length)
        case "paper_continual":
            return continual(sizes)


def unimax(sizes: Sequence[Size], length: Fraction, drawn: Sequence[Fraction]) -> list[Fraction]:
    """Samples of each source: alike, none over its cap of epochs (Chung et al. 2023, arXiv 2304.09151, algorithm 1).

    The cap is one of the whole run: what earlier phases have `drawn` [samples] counts.  From the smallest rest on each
    takes an even part of what is left, or its rest; under one sample is none.  Errors: a UserError where all rests
    together are less than the phase.
    """
    caps = [size.sequences * size.max_epochs for size in sizes]
    room = [cap - before if cap - before >= 1 else Fraction(0) for cap, before in zip(caps, drawn, strict=True)]
    if sum(room) < length:
        so_far = " after the phases before" if any(drawn) else ""
        problem = (
            f"all sources at their max_epochs give {float(sum(room)):,.0f} of {float(length):,.0f} samples{so_far}"
        )
        raise UserError("mode unimax", problem, "raise max_epochs, or train on fewer tokens")
    left, parts = length, [Fraction(0)] * len(sizes)
    order = sorted(range(len(sizes)), key=lambda source: room[source])
    for rank, source in enumerate(order):
        parts[source] = min(room[source], left / (len(sizes) - rank))
        left -= parts[source]
    return parts


def from_scratch(sizes: Sequence[Size], length: Fraction | None) -> list[Fraction]:
    """The paper's mix from scratch: the tuning data 4 times; of the rest, a fifth of the texts augmented.

    Texts are counted, and converted to samples by their mean length.  Errors: a UserError for other kinds of sources,
    and where the tuning data leave no room.
    """
    mode: BlendMode = "paper_from_scratch"
    by_kind = _of_kinds(mode, sizes, needed=("raw", "augmented"), possible=("tuning",))
    tuning = Fraction(sum(size.sequences for size in by_kind["tuning"]) * TUNING_EPOCHS)
    rest = _needed(length, mode) - tuning if tuning else Fraction(1)
    if rest <= 0:
        problem = f"{TUNING_EPOCHS} epochs of the tuning data are {float(tuning):,.0f} samples, the whole run or more"
        raise UserError(f"mode {mode}", problem, "train on more tokens")
    per_text = {kind: _mean(by_kind[kind]) for kind in ("raw", "augmented")}
    samples = {"augmented": AUGMENTED_TEXTS * per_text["augmented"], "raw": (1 - AUGMENTED_TEXTS) * per_text["raw"]}
    whole = sum(samples.values(), Fraction(0))
    totals = {"tuning": tuning, **{kind: rest * part / whole for kind, part in samples.items()}}
    return _within_kinds(sizes, totals)


def continual(sizes: Sequence[Size]) -> list[Fraction]:
    """The paper's continual mix: augmented text and general instructions one to one by tokens, nothing else.

    Errors: a UserError for other kinds of sources.
    """
    _of_kinds("paper_continual", sizes, needed=("augmented", "general"), possible=())
    return _within_kinds(sizes, {"augmented": Fraction(1), "general": Fraction(1)})


def _within_kinds(sizes: Sequence[Size], totals: dict[str, Fraction]) -> list[Fraction]:
    """The total of each kind, divided among its sources in proportion to their sizes."""
    whole = {kind: sum(size.sequences for size in sizes if size.kind == kind) for kind in totals}
    return [totals[size.kind] * size.sequences / whole[size.kind] for size in sizes]


def _of_kinds(
    mode: BlendMode, sizes: Sequence[Size], needed: Sequence[SourceKind], possible: Sequence[SourceKind]
) -> dict[str, list[Size]]:
    found: dict[str, list[Size]] = {kind: [] for kind in (*needed, *possible)}
    for size in sizes:
        if size.kind not in found:
            legal = ", ".join(found)
            problem = f"source '{size.name}' is of kind {size.kind}, the paper's mix has {legal}"
            raise UserError(f"mode {mode}", problem, f"leave it out, or set sources.{size.name}.kind")
        found[size.kind].append(size)
    for kind in needed:
        if not found[kind]:
            raise UserError(f"mode {mode}", f"no source is of kind {kind}", f"set sources.NAME.kind: {kind}")
    return found


def _mean(sizes: Sequence[Size]) -> Fraction:
    """Samples a text."""
    return Fraction(sum(size.sequences for size in sizes), sum(size.texts for size in sizes))


def _power(base: int, exponent: Fraction) -> Fraction:
    power = _DECIMAL.divide(Decimal(exponent.numerator), Decimal(exponent.denominator))
    return Fraction(_DECIMAL.power(Decimal(base), power))


def _needed(length: Fraction | None, mode: BlendMode) -> Fraction:
    if length is None:
        raise UserError(f"mode {mode}", "needs the length of the run", "set train_tokens, or --train-tokens 100B")
    return length
