"""The plan of a blend: what each source gives to a run, before the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import exp
from pathlib import Path
from typing import Any

from data_prep.blend.file import Blend, BlendSource, resolve
from data_prep.manifest import write_json
from data_prep.settings import BlendSettings

# Muennighoff et al. 2023 (arXiv 2305.16264), R*_D: repeats after which repeated data is worth 1 - 1/e of fresh.
REPEAT_DECAY = 15.4


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One source.  The last five need the length of the run and are None without it.

    `weight` as given; `share` of samples, and so of tokens, in a period; `epochs` is fractional;
    `effective_tokens` counts repeated tokens at what they are worth.
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


@dataclass(frozen=True, slots=True)
class PlanTable:
    """A row for each source, in the order of the blend."""

    blend_hash: str
    seq_length: int
    train_samples: int | None
    rows: tuple[PlanRow, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    settings: BlendSettings, out_dir: Path, base_dir: Path = Path(), tokenizer_dir: Path | None = None
) -> PlanTable:
    """Resolves the blend, writes out_dir/blend.json and out_dir/plan.json, and gives the plan.

    Pack tables go beside their datasets.  Prefixes are relative to `base_dir`.  Errors: as `resolve`.
    """
    blend = resolve(settings, base_dir, tokenizer_dir)
    table = plan_table(blend, settings.train_samples, settings.max_epochs)
    out_dir.mkdir(parents=True, exist_ok=True)
    blend.write(out_dir / "blend.json")
    write_json(out_dir / "plan.json", table.to_json())
    return table


def plan_table(blend: Blend, train_samples: int | None, max_epochs: float) -> PlanTable:
    """The plan as a pure function of the blend, the run's length [samples] and the epochs that draw a warning."""
    counts = blend.schedule.counts(train_samples) if train_samples else [None] * len(blend.sources)
    shares = blend.phases[-1].shares
    rows = (
        _row(source, share / sum(shares), drawn, blend.seq_length, max_epochs)
        for source, share, drawn in zip(blend.sources, shares, counts, strict=True)
    )
    return PlanTable(blend.hash, blend.seq_length, train_samples, tuple(rows))


def effective_tokens(tokens: int, epochs: float) -> float:
    """What `epochs` passes over `tokens` are worth in fresh tokens: U + U*R* * (1 - exp(-R / R*)).

    U is the unique tokens drawn, R the repeats beyond the first epoch (Muennighoff et al. 2023, eq. 5).
    """
    unique, repeats = tokens * min(epochs, 1.0), max(epochs - 1.0, 0.0)
    return unique + unique * REPEAT_DECAY * (1 - exp(-repeats / REPEAT_DECAY))


def _row(source: BlendSource, share: float, drawn: int | None, seq_length: int, max_epochs: float) -> PlanRow:
    # A pass over N sequences predicts each token but the first, fewer than N * seq_length.
    epochs = None if drawn is None else drawn / source.sequences
    flags = []
    if source.tokens <= seq_length:
        flags.append(f"under one sequence: {source.tokens} tokens of {seq_length + 1}, the rest is padding")
    if epochs is not None and epochs > max_epochs:
        flags.append(f"{epochs:.2f} epochs, more than max_epochs {max_epochs:g}")
    return PlanRow(
        source=source.name,
        documents=source.documents,
        tokens=source.tokens,
        weight=source.weight,
        share=share,
        sequences=source.sequences,
        samples_drawn=drawn,
        tokens_drawn=None if epochs is None else round(epochs * (source.tokens - 1)),
        epochs=epochs,
        effective_tokens=None if epochs is None else effective_tokens(source.tokens, epochs),
        flags=tuple(flags),
    )
