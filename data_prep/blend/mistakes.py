"""Mistakes that a blend may hold though its form is right: each warned of, or refused unless it is meant.

| mistake | answer |
|---|---|
| weights that are the sources' document counts, where weights count tokens | note |
| weights that sum to 1 beside such that sum to 100, in one phase | refused, `allow: [scales]` |
| the same in two phases, each of which is normalised by itself | note |
| the same text in two sources, augmented and raw, or one dataset twice | refused, `allow: [copies]` |
| a held-out text in a source | refused, `allow: [held_out]` |
| a held-out set of another tokenizer | refused |
| a source repeated over max_epochs | flag; over refuse_epochs, or its own max_epochs: refused |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from data_prep.blend.model import Blend, BlendSource
from data_prep.blend.phases import Resolved
from data_prep.errors import UserError
from data_prep.manifest import read_manifest
from data_prep.settings import BlendSettings

# Rounded figures still are the sum, or the count, that they look like.
_NEAR = 0.005
_PROXY_OFF = 0.05


def notes(blend: Blend, settings: BlendSettings) -> tuple[str, ...]:
    """What is only warned of.  Errors: a UserError for weights of two scales in one phase."""
    found = []
    weights = [_weights(blend, phase) for phase in range(len(blend.phases))]
    for phase, given in zip(blend.phases, weights, strict=True):
        if "scales" not in settings.allow:
            _check_scale(phase.name, given)
        if settings.unit == "tokens" and (told := _like_documents(blend, given)):
            found.append(f"{phase.name}: {told}")
    ones = [phase.name for phase, given in zip(blend.phases, weights, strict=True) if _near(sum(given.values()), 1)]
    cents = [phase.name for phase, given in zip(blend.phases, weights, strict=True) if _near(sum(given.values()), 100)]
    if ones and cents:
        told = f"weights of {', '.join(ones)} sum to 1, those of {', '.join(cents)} to 100"
        found.append(f"{told}; each phase is normalised by itself")
    return tuple(found)


def proxy_notes(run: Resolved) -> tuple[str, ...]:
    """Sources that a proxy run cannot shrink in proportion, as they have so few sequences."""
    if not run.proxy_of or not run.samples:
        return ()
    found = []
    for source in run.blend.sources:
        exact = source.of_sequences * run.samples / run.proxy_of
        if abs(off := exact / source.sequences - 1) > _PROXY_OFF:
            told = f"'{source.name}' uses {source.sequences} sequences where {exact:.2f} would be in proportion"
            found.append(f"{told}: its epochs are {off:+.0%} off those of the real run; give the proxy more tokens")
    return tuple(found)


def check_texts(blend: Blend, settings: BlendSettings, base_dir: Path) -> tuple[str, ...]:
    """Holds sources against each other and against held-out text, by the lineage of their documents.

    Gives a note for each fault that `allow` lets pass.  Errors: a UserError naming both datasets.
    """
    found = []
    for first, second in combinations(blend.sources, 2):
        if told := _common_text(first, second, settings):
            if "copies" not in settings.allow:
                mend = "draw one of them, index the texts apart (`ipt data render` does), or say allow: [copies]"
                raise UserError(f"sources '{first.name}' and '{second.name}'", told, mend)
            found.append(f"'{first.name}' and '{second.name}': {told}")
    for name, prefix in settings.held_out.items():
        found += _check_held_out(blend, name, (base_dir / prefix).resolve(), settings)
    return tuple(found)


def check_epochs(epochs: Mapping[str, float], settings: BlendSettings) -> None:
    """UserError for a source that the run repeats more often than is sensible, or than its own limit says."""
    for name, repeated in epochs.items():
        own = settings.sources[name].max_epochs
        limit = own or settings.refuse_epochs
        # Shares are whole samples of a period: a cap that was asked for is met within a hundredth.
        if repeated > limit * 1.01:
            which = f"sources.{name}.max_epochs" if own else "refuse_epochs"
            problem = f"{repeated:.2f} epochs, more than {which} {limit:g}"
            mend = f"lower its amount, train on fewer tokens, or raise sources.{name}.max_epochs if it is meant"
            raise UserError(f"sources.{name}", problem, mend)


def _weights(blend: Blend, phase: int) -> dict[str, float]:
    """Source -> weight, of those that a phase gives a weight."""
    pairs = zip(blend.sources, blend.phases[phase].amounts, strict=False)
    return {source.name: amount[1] for source, amount in pairs if amount and amount[0] == "weight"}


def _check_scale(phase: str, weights: Mapping[str, float]) -> None:
    small = {name: weight for name, weight in weights.items() if 0 < weight <= 1}
    large = {name: weight for name, weight in weights.items() if weight > 1}
    if small and large and _near(sum(small.values()), 1) and _near(sum(large.values()), 100) and len(weights) > 2:
        told = f"the weights of {', '.join(large)} sum to 100, those of {', '.join(small)} to 1"
        raise UserError(phase, told, "give all of them one scale, or say allow: [scales]")


def _like_documents(blend: Blend, weights: Mapping[str, float]) -> str:
    """A note where weights are in proportion to documents and not to tokens, and that makes a difference."""
    sources = [source for source in blend.sources if weights.get(source.name)]
    if len(sources) < 2 or len(sources) < len(weights):
        return ""
    by_documents = _spread([weights[source.name] / source.documents for source in sources])
    by_tokens = _spread([weights[source.name] / source.tokens for source in sources])
    alike = _spread([weights[source.name] for source in sources])
    if by_documents > 1 + _NEAR or by_tokens < 1.1 or alike < 1.01:
        return ""
    return "the weights are those of the documents, and they count tokens; for documents say unit: documents"


def _common_text(first: BlendSource, second: BlendSource, settings: BlendSettings) -> str:
    """What two sources have in common that neither should, or nothing."""
    if first.data_hash == second.data_hash:
        return "are one dataset under two names: the same text twice"
    if {first.kind, second.kind} != {"raw", "augmented"}:
        return ""
    raw, augmented = (first, second) if first.kind == "raw" else (second, first)
    if settings.sources[augmented.name].copy_of == raw.name:
        return f"'{augmented.name}' is a copy of '{raw.name}', and both are drawn: the same text twice"
    common = _count_common(raw.prefix, augmented.prefix)
    return f"{common:,} raw texts stand in both: the same text twice" if common else ""


def _check_held_out(blend: Blend, name: str, prefix: Path, settings: BlendSettings) -> list[str]:
    if read_manifest(prefix).tokenizer != blend.tokenizer:
        mend = "index it with the same tokenizer and policy"
        raise UserError(f"held_out.{name}", "was tokenized unlike the sources", mend)
    found = []
    for source in blend.sources:
        same = read_manifest(prefix).data_hash == source.data_hash
        common = read_manifest(prefix).documents if same else _count_common(prefix, source.prefix)
        if common:
            told = f"{common:,} of its texts stand in the source '{source.name}' ({source.kind})"
            if "held_out" not in settings.allow:
                mend = "set them apart before augmenting (`ipt data fetch` does), or say allow: [held_out]"
                raise UserError(f"held_out.{name}", told, mend)
            found.append(f"held_out.{name}: {told}")
    return found


def _count_common(one: Path, other: Path) -> int:
    # Imported here: pyarrow is heavy, and a run that only reads a blend does not need it.
    from data_prep.blend.copies import count_common

    return count_common(one, other)


def _spread(values: Sequence[float]) -> float:
    return max(values) / min(values)


def _near(value: float, target: float) -> bool:
    return abs(value - target) <= _NEAR * target
