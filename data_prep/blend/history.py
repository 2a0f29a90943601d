"""Blends that follow each other under one run: what is unlike, from which sample on, and whether the past is untouched.

A blend.json that is replaced by an unlike one stays beside it as blend.<hash>.json, so that a changed past can be told.
"""

from __future__ import annotations

from math import lcm
from pathlib import Path

import numpy as np
import orjson

from data_prep.blend.file import read_blend
from data_prep.blend.model import Blend, BlendSource
from data_prep.errors import UserError

# Samples compared at once.
_SCAN = 1 << 20
# Pack tables differ with the format of the blend and with its split, even where they have as many sequences.
_OF_ALL_SAMPLES = ("format_version", "seq_length", "seed", "tokenizer", "split")


def write_blend(blend: Blend, path: Path) -> None:
    """Writes blend.json; an unlike one that stands there is kept beside it."""
    known = _hash_of(path)
    if known is not None and known != blend.hash:
        kept_path(path.parent, known).write_bytes(path.read_bytes())
    blend.write(path)


def kept_path(folder: Path, blend_hash: str) -> Path:
    return folder / f"blend.{blend_hash[:16]}.json"


def differences(one: Blend, other: Blend) -> list[str]:
    """What two blends say unlike, in words; nothing if they give the same samples."""
    told = [
        f"{name} {getattr(one, name)} and {getattr(other, name)}"
        for name in ("seq_length", "seed")
        if getattr(one, name) != getattr(other, name)
    ]
    if one.format_version != other.format_version:
        formats = f"format_version {one.format_version} and {other.format_version}"
        told.append(f"{formats}: documents stand in another order in their pack tables")
    if one.split != other.split:
        told.append(f"split {_split(one)} and {_split(other)}")
    for name, mine in one.tokenizer:
        if mine != getattr(other.tokenizer, name):
            told.append(f"tokenizer {name} {mine} and {getattr(other.tokenizer, name)}")
    before, after = ({source.name: source for source in blend.sources} for blend in (one, other))
    told += [f"source '{name}' is only in the first" for name in before if name not in after]
    told += [f"source '{name}' is only in the second" for name in after if name not in before]
    for name in before:
        if name in after:
            told += _unlike_sources(before[name], after[name])
    if before.keys() == after.keys() and list(before) != list(after):
        told.append(f"the order of the sources, {', '.join(before)} and {', '.join(after)}")
    return told + _unlike_phases(one, other)


def first_difference(one: Blend, other: Blend) -> int | None:
    """The first sample that two blends draw from another place; None if there is none.

    Exact, but for two places that hold the same tokens.
    """
    if any(getattr(one, name) != getattr(other, name) for name in _OF_ALL_SAMPLES):
        return 0
    known: dict[object, int] = {}
    mine, theirs = (_identities(blend, known) for blend in (one, other))
    starts = sorted({phase.first_sample for blend in (one, other) for phase in blend.phases})
    for number, start in enumerate(starts):
        end = starts[number + 1] if number + 1 < len(starts) else None
        found = _first_in(one, other, mine, theirs, start, end)
        if found is not None:
            return found
    return None


def check_continues(blend: Blend, blend_hash: str, consumed: int, checkpoint: Path) -> None:
    """UserError, saying what changed, unless a run that consumed `consumed` samples of another one may go on.

    It may where a phase was appended at or after that sample, or where the earlier blend is kept beside this one and
    both give the same samples until then.
    """
    if blend.continues(blend_hash, consumed):
        return
    start_anew = "or start anew from its weights: train.load=... train.finetune=true train.save=NEW"
    same, earlier = blend.same_until(blend_hash), _kept(blend, blend_hash)
    if earlier is None and same is None:
        problem = f"was trained on another blend ({blend_hash[:12]}, here {blend.hash[:12]})"
        problem += "; what it has seen would not be what this one says"
        raise UserError(checkpoint, problem, f"restore the blend, {start_anew}")
    first = first_difference(earlier, blend) if earlier is not None else same
    if first is None or first >= consumed:
        return
    told = f" ({'; '.join(differences(earlier, blend))})" if earlier is not None else ": a phase starts there"
    problem = f"has consumed {consumed:,} samples of a blend that differs from sample {first:,} on{told}"
    mend = f"restore the blend, change it from sample {consumed:,} on (`ipt blend append`), {start_anew}"
    raise UserError(checkpoint, problem, mend)


def _kept(blend: Blend, blend_hash: str) -> Blend | None:
    """The blend of that hash which this one replaced, if its file still stands there."""
    if blend.folder is None or not kept_path(blend.folder, blend_hash).exists():
        return None
    return read_blend(kept_path(blend.folder, blend_hash))


def _hash_of(path: Path) -> str | None:
    """The hash that a blend.json tells, None where there is none that can be read."""
    try:
        told = orjson.loads(path.read_bytes()).get("blend_hash")
    except (OSError, ValueError, AttributeError):
        return None
    return told if isinstance(told, str) else None


def _split(blend: Blend) -> str:
    return f"{blend.split.validation:g} of seed {blend.split.seed}" if blend.split else "none"


def _unlike_sources(one: BlendSource, other: BlendSource) -> list[str]:
    told = []
    if one.data_hash != other.data_hash:
        counts = f"{one.documents:,} documents of {one.tokens:,} tokens and {other.documents:,} of {other.tokens:,}"
        told.append(f"source '{one.name}' has other data ({counts})")
    elif one.lineage_hash != other.lineage_hash:
        told.append(f"source '{one.name}': its documents have another lineage, which its pack table was made from")
    for name in ("loss", "policy", "sequences"):
        if getattr(one, name) != getattr(other, name):
            told.append(f"source '{one.name}': {name} {getattr(one, name)} and {getattr(other, name)}")
    return told


def _unlike_phases(one: Blend, other: Blend) -> list[str]:
    told = []
    for number, (mine, theirs) in enumerate(zip(one.phases, other.phases, strict=False), 1):
        if mine.first_sample != theirs.first_sample:
            told.append(f"phase {number} starts at sample {mine.first_sample:,} and {theirs.first_sample:,}")
        before, after = (_shares(blend, number - 1) for blend in (one, other))
        for name in {**before, **after}:
            if (had := before.get(name, 0.0)) != (has := after.get(name, 0.0)):
                told.append(f"phase {number}: share of '{name}' {had:.6g} and {has:.6g}")
    for blend, which, count in ((one, "first", len(other.phases)), (other, "second", len(one.phases))):
        for number, phase in enumerate(blend.phases[count:], count + 1):
            told.append(f"phase {number}, from sample {phase.first_sample:,} on, is only in the {which}")
    return told


def _shares(blend: Blend, phase: int) -> dict[str, float]:
    shares = blend.phases[phase].shares
    return {source.name: share / sum(shares) for source, share in zip(blend.sources, shares, strict=True)}


def _identities(blend: Blend, known: dict[object, int]) -> np.ndarray:
    """A number for each source, the same for sources that give the same samples, int64 [sources]."""
    keys = ((s.name, s.data_hash, s.lineage_hash, s.sequences, s.loss, s.policy) for s in blend.sources)
    return np.array([known.setdefault(key, len(known)) for key in keys], np.int64)


def _first_in(
    one: Blend, other: Blend, mine: np.ndarray, theirs: np.ndarray, start: int, end: int | None
) -> int | None:
    """The first sample of [start, end) whose source differs; each blend has one phase there."""
    phases = [blend.schedule.phase_of(start) for blend in (one, other)]
    # Both repeat: what agrees over a common period agrees for ever.
    common = start + lcm(phases[0].period, phases[1].period)
    end = common if end is None else min(end, common)
    for low in range(start, end, _SCAN):
        high = min(low + _SCAN, end)
        # Equal sources so far have equal ordinals: each is how often its source was drawn before.
        unlike = np.flatnonzero(mine[phases[0].sources(low, high)] != theirs[phases[1].sources(low, high)])
        if len(unlike):
            return low + int(unlike[0])
    return None
