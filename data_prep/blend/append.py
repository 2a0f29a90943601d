"""A further phase for a blend that a run has begun, its past untouched."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import compress

from data_prep.blend.file import pack_source
from data_prep.blend.model import BLEND_FORMAT_VERSION, Ancestor, Blend, BlendPhase, BlendSource
from data_prep.blend.packed import check_spans
from data_prep.blend.weights import decimal_fraction, integer_shares
from data_prep.errors import UserError, nearest
from data_prep.indexing.verify import verify
from data_prep.packing import PackSpec
from data_prep.settings import SourceSettings


def append(
    blend: Blend,
    first_sample: int,
    weights: Mapping[str, float],
    added: Mapping[str, SourceSettings] | None = None,
    period: int | None = None,
) -> Blend:
    """The blend with the phase `weights` from `first_sample` on; a source without a weight gives nothing there.

    `added` are new sources with an absolute prefix; what they do not say of policy and loss is that of their kin
    (`like_its_kin`).  Phases that would have started at `first_sample` or later go.  The period is that of the last
    phase, unless it is given.  Errors: a UserError for a name that is no source, a new source that is unlike the others
    or has no weight, and a weight too small for one sample in a period.
    """
    added = added or {}
    if first_sample < 1:
        raise UserError("--from", f"{first_sample} is the begin of the run", "plan another blend: it has no past")
    if blend.format_version < BLEND_FORMAT_VERSION:
        problem = f"is of format {blend.format_version}, whose documents stood in another order"
        raise UserError("the blend", problem, "plan it again; a run that was begun with it cannot go on")
    names = [source.name for source in blend.sources]
    for name in added:
        if any(source.sequences < source.of_sequences for source in blend.sources):
            problem = "the blend is of a proxy run, whose sources are shrunk alike"
            raise UserError(f"--source {name}", problem, "plan the proxy again, with the phase in its blend file")
        if name in names:
            problem = "is a source of the blend already; a source does not change"
            raise UserError(f"--source {name}", problem, "give grown data a name of its own")
    for name in weights:
        if name not in names and name not in added:
            raise UserError(f"--weights {name}", "no such source", nearest(name, [*names, *added]))
    sources = [*blend.sources, *(_open(blend, name, like_its_kin(blend, of)) for name, of in added.items())]
    kept = [phase for phase in blend.phases if phase.first_sample < first_sample]
    phases = [
        *(_widened(phase, len(added)) for phase in kept),
        _phase(first_sample, sources, weights, period or sum(kept[-1].shares), len(kept) + 1),
    ]
    drawn = [any(phase.shares[index] for phase in phases) for index in range(len(sources))]
    for source, used in zip(sources, drawn, strict=True):
        if source.name in added and not used:
            raise UserError(f"--weights {source.name}", "the new source has no weight", "give it one")
    # A source that only phases to come would have drawn goes with them.
    sources = [source for source, used in zip(sources, drawn, strict=True) if used]
    phases = [_narrowed(phase, drawn) for phase in phases]
    earlier = [Ancestor(blend_hash=blend.hash, samples=first_sample)]
    earlier += [Ancestor(blend_hash=a.blend_hash, samples=min(a.samples, first_sample)) for a in blend.ancestors]
    return blend.with_changes(sources=tuple(sources), phases=tuple(phases), ancestors=tuple(earlier))


def like_its_kin(blend: Blend, source: SourceSettings) -> SourceSettings:
    """A new source, its policy and loss those of the blend's sources of its kind where it does not say them itself.

    Where these are of several policies, or there are none, its policy is that of all sources, if they have one.
    """
    kin = [of for of in blend.sources if of.kind == source.kind]
    groups = {"policy": (kin, blend.sources), "loss": (kin,)}
    changes = {}
    for name, candidates in groups.items():
        if name in source.model_fields_set:
            continue
        said = ({getattr(of, name) for of in group} for group in candidates)
        if (alike := next((values for values in said if len(values) == 1), None)) is not None:
            (changes[name],) = alike
    return source.model_copy(update=changes)


def _open(blend: Blend, name: str, source: SourceSettings) -> BlendSource:
    """A new source, verified whole, its pack table built."""
    prefix = source.prefix
    if prefix is None:
        raise UserError(f"--source {name}", "no dataset is named", "give the prefix of PREFIX.bin and PREFIX.idx")
    manifest = verify(prefix)
    if manifest.tokenizer != blend.tokenizer:
        raise UserError(f"--source {name}", "was tokenized unlike the blend", "index it with the same one and policy")
    if manifest.tokens <= blend.seq_length:
        problem = f"{manifest.tokens} tokens, shorter than a sequence and its label ({blend.seq_length + 1})"
        raise UserError(f"--source {name}", problem, "merge it with another dataset")
    check_spans(name, source, manifest)
    spec = PackSpec(blend.seq_length, blend.seed, source.policy, blend.split)
    return pack_source(name, prefix, manifest, spec, source.kind, source.loss)


def _widened(phase: BlendPhase, more: int) -> BlendPhase:
    amounts = (*phase.amounts, *[None] * more) if phase.amounts else ()
    return phase.model_copy(update={"shares": (*phase.shares, *[0] * more), "amounts": amounts})


def _narrowed(phase: BlendPhase, kept: list[bool]) -> BlendPhase:
    shares, amounts = (tuple(compress(values, kept)) for values in (phase.shares, phase.amounts))
    return phase.model_copy(update={"shares": shares, "amounts": amounts})


def _phase(
    first_sample: int, sources: list[BlendSource], weights: Mapping[str, float], period: int, number: int
) -> BlendPhase:
    given = [weights.get(source.name, 0.0) for source in sources]
    if not any(given):
        raise UserError("--weights", "no source has a weight above 0", "give one to at least one source")
    shares = integer_shares([decimal_fraction(weight) for weight in given], period)
    for source, weight, share in zip(sources, given, shares, strict=True):
        if weight and not share:
            problem = f"its weight gives it none of the {period} samples of a period"
            raise UserError(f"--weights {source.name}", problem, "raise it")
    amounts = tuple(("weight", weight) if weight else None for weight in given)
    return BlendPhase(first_sample=first_sample, shares=tuple(shares), name=f"phase {number}", amounts=amounts)
