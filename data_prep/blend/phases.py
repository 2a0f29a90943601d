"""Amounts -> the phases of a blend in integer shares, and the smaller blend of a proxy run."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from data_prep.blend.amounts import Mix, mixes
from data_prep.blend.model import Blend, BlendPhase, BlendSource
from data_prep.blend.modes import Size
from data_prep.blend.weights import decimal_fraction, integer_shares
from data_prep.errors import UserError
from data_prep.manifest import TokenizerIdentity
from data_prep.settings import BlendSettings


@dataclass(frozen=True, slots=True)
class Resolved:
    """A blend, and how many samples its run draws, where that is known; `proxy_of` is the run that it stands for."""

    blend: Blend
    samples: int | None
    proxy_of: int | None = None


def schedule_run(settings: BlendSettings, tokenizer: TokenizerIdentity, sources: list[BlendSource]) -> Resolved:
    """The blend of these sources: amounts as integer shares, and all of it shrunk where a proxy run is asked for."""
    found, samples = mixes(settings, [_size(settings, source) for source in sources])
    phases = [_phase(mix, sources, settings.period) for mix in found]
    proxy_of = None
    if settings.proxy_tokens is not None:
        proxy = -(-settings.proxy_tokens // settings.seq_length)
        sources, phases = shrink(sources, phases, proxy, samples)
        samples, proxy_of = proxy, samples
    blend = Blend(
        seq_length=settings.seq_length,
        seed=settings.seed,
        tokenizer=tokenizer,
        sources=tuple(sources),
        phases=tuple(phases),
        split=settings.split,
    )
    return Resolved(blend, samples, proxy_of)


def shrink(
    sources: list[BlendSource], phases: list[BlendPhase], proxy: int, samples: int | None
) -> tuple[list[BlendSource], list[BlendPhase]]:
    """Simulated epoching: as many of each source's sequences as give a run of `proxy` samples the real run's epochs.

    The first of the pack table are kept, whose documents stand in a seeded order.  Phases start sooner in proportion.
    """
    if samples is None or proxy > samples:
        run = "of unknown length" if samples is None else f"of {samples:,} samples"
        problem = f"{proxy:,} samples are no proxy of a run {run}"
        raise UserError("proxy_tokens", problem, "set train_tokens to those of the real run, and proxy_tokens to fewer")
    part = Fraction(proxy, samples)
    starts = [int(phase.first_sample * part) for phase in phases]
    if len(set(starts)) < len(starts):
        raise UserError("proxy_tokens", "two phases would start at one sample", "give the proxy more tokens")
    used = [max(1, round(source.sequences * part)) for source in sources]
    smaller = [
        source.model_copy(update={"sequences": count, "pack_sequences": source.sequences})
        for source, count in zip(sources, used, strict=True)
    ]
    return smaller, [phase.model_copy(update={"first_sample": s}) for phase, s in zip(phases, starts, strict=True)]


def _size(settings: BlendSettings, source: BlendSource) -> Size:
    texts = source.documents
    if settings.mode == "paper_from_scratch" or any(phase.mode == "paper_from_scratch" for phase in settings.phases):
        texts = _count_texts(settings, source) or source.documents
    cap = settings.sources[source.name].max_epochs or settings.max_epochs
    counts = (source.documents, source.tokens, source.sequences, texts)
    return Size(source.name, source.kind, *counts, decimal_fraction(cap))


def _count_texts(settings: BlendSettings, source: BlendSource) -> int:
    """Raw texts of a source, with a split those of its training side, as its sequences are; 0 without a lineage."""
    # Imported here: pyarrow is heavy, and only one mode counts the texts inside documents.
    from data_prep.blend.copies import count_texts
    from data_prep.packing import splits

    if settings.split is None:
        return count_texts(source.prefix)
    return splits.count_texts(source.prefix, settings.split, "train")


def _phase(mix: Mix, sources: list[BlendSource], period: int) -> BlendPhase:
    shares = integer_shares(mix.parts, period)
    for source, part, share, amount in zip(sources, mix.parts, shares, mix.amounts, strict=True):
        if part and not share:
            unit = amount[0] if amount else "weight"
            where = f"sources.{source.name}.{unit}" if mix.first_sample == 0 else f"{mix.name}: {source.name}.{unit}"
            problem = f"its {unit} gives it none of the {period} samples of a period"
            raise UserError(where, problem, "raise it, or the blend's period")
    name = "phase 1" if mix.name == "sources" else mix.name
    return BlendPhase(first_sample=mix.first_sample, shares=tuple(shares), name=name, amounts=mix.amounts)
