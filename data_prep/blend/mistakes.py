"""Mistakes that a blend may hold though its form is right: each warned of, or refused unless it is meant.

| mistake | answer |
|---|---|
| weights or shares that are the sources' document counts, where they count tokens | note |
| weights that sum to 1 beside such that sum to 100, in one phase | refused, `allow: [scales]` |
| one of 1 or less beside such that sum to 100; sums of 1 and of 100 in two phases | note |
| the same text in two sources, augmented and raw, or one dataset twice | refused, `allow: [copies]` |
| the same text in two other sources | note |
| a held-out text in a source, or pairs about it | refused, `allow: [held_out]` |
| a dataset without the lineage that these need | note: it could not be checked |
| a held-out set of another tokenizer | refused |
| a source repeated over max_epochs | flag; over refuse_epochs, or its own max_epochs: refused |

A plan checks all phases, a phase that is appended (append.py) itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from data_prep.blend.checks import Checks
from data_prep.blend.model import Blend, BlendSource
from data_prep.blend.phases import Resolved
from data_prep.blend.scales import amounts_in, check_scale, like_documents, scale_notes
from data_prep.errors import UserError
from data_prep.manifest import manifest_path, read_manifest

_PROXY_OFF = 0.05


@dataclass(frozen=True, slots=True)
class Words:
    """How a mistake is said to be meant, `{}` its name; and how a source gets another cap, `{}` the source's."""

    allow: str = "say allow: [{}]"
    cap: str = "raise sources.{}.max_epochs"


IN_FILE = Words()
BY_OPTION = Words("say --allow {}", "say --max-epochs {}=NUMBER")


def notes(blend: Blend, checks: Checks, phases: Sequence[int] | None = None, words: Words = IN_FILE) -> tuple[str, ...]:
    """What is only warned of, in all phases or some.  Errors: a UserError for weights of two scales in one phase."""
    looked_at = range(len(blend.phases)) if phases is None else phases
    found = []
    for index in looked_at:
        name = blend.phases[index].name
        told = []
        if "scales" not in checks.allow:
            told.append(check_scale(name, amounts_in(blend, index, "weight"), words.allow.format("scales")))
        if checks.unit == "tokens":
            told.append(like_documents(blend, index))
        found += [f"{name}: {line}" for line in told if line]
    return (*found, *scale_notes(blend, looked_at))


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


def check_texts(
    blend: Blend, checks: Checks, among: Collection[str] | None = None, words: Words = IN_FILE
) -> tuple[str, ...]:
    """Holds sources against each other and against held-out text, by the lineage of their documents.

    Gives a note for each fault that `allow` lets pass, and for what could not be checked.  `among` are the sources that
    are new, of which one at least is in each pair; None: all.  Errors: a UserError naming both datasets.
    """
    new = {source.name for source in blend.sources} if among is None else set(among)
    found = []
    pairs = [pair for pair in combinations(blend.sources, 2) if new & {source.name for source in pair}]
    for first, second in pairs:
        told, twice = _common_text(first, second, checks)
        if twice and "copies" not in checks.allow:
            mend = "draw one of them, index the texts apart (`ipt data render` does), or "
            where = f"sources '{first.name}' and '{second.name}'"
            raise UserError(where, told, mend + words.allow.format("copies"))
        if told:
            found.append(f"'{first.name}' and '{second.name}': {told}")
    found += _not_compared(pairs)
    sources = [source for source in blend.sources if source.name in new]
    for name, held_out in checks.held_out.items() if sources else ():
        where = f"held_out.{name}"
        if manifest_path(held_out.prefix).exists():
            found += check_held_out(where, held_out.prefix, blend, sources, checks.allow, words)
        else:
            found.append(f"{where}: could not be checked: no dataset at {held_out.prefix}")
    return tuple(found)


def check_held_out(
    where: str,
    prefix: Path,
    blend: Blend,
    sources: Sequence[BlendSource],
    allow: Collection[str] = (),
    words: Words = IN_FILE,
) -> list[str]:
    """Holds a set of held-out text against sources of a blend: no text of it, and no pairs about one, are in them.

    Gives a note for each fault that `allow` lets pass, and for what could not be checked.  Errors: a UserError that
    begins with `where`.
    """
    manifest = read_manifest(prefix)
    if manifest.tokenizer != blend.tokenizer:
        raise UserError(where, "was tokenized unlike the sources", "index it with the same tokenizer and policy")
    found, bare = [], []
    for source in sources:
        same = manifest.data_hash == source.data_hash
        common = manifest.documents if same else _count_common(prefix, source.prefix, named=True)
        if common is None:
            bare.append(source.name)
        elif common:
            told = f"{common:,} of its texts stand in the source '{source.name}' ({source.kind})"
            if "held_out" not in allow:
                mend = "set them apart before augmenting (`ipt data fetch` does), or " + words.allow.format("held_out")
                raise UserError(where, told, mend)
            found.append(f"{where}: {told}")
    if bare:
        of = "it" if not manifest.lineage else ", ".join(f"'{name}'" for name in bare)
        has = "has" if of == "it" or len(bare) == 1 else "have"
        found.append(f"{where}: whether its texts are trained on could not be checked: {of} {has} no lineage")
    return found


def check_epochs(epochs: Mapping[str, float], checks: Checks, words: Words = IN_FILE) -> None:
    """UserError for a source that the run repeats more often than is sensible, or than its own limit says."""
    for name, repeated in epochs.items():
        own = checks.own_epochs.get(name)
        limit = own or checks.refuse_epochs
        # Shares are whole samples of a period: a cap that was asked for is met within a hundredth.
        if repeated > limit * 1.01:
            which = f"sources.{name}.max_epochs" if own else "refuse_epochs"
            problem = f"{repeated:.2f} epochs, more than {which} {limit:g}"
            mend = f"lower its amount, train on fewer tokens, or {words.cap.format(name)} if it is meant"
            raise UserError(f"sources.{name}", problem, mend)


def _common_text(first: BlendSource, second: BlendSource, checks: Checks) -> tuple[str, bool]:
    """What two sources have in common, or nothing; and whether that is a fault, beyond being worth a note."""
    if first.data_hash == second.data_hash:
        return "are one dataset under two names: the same text twice", True
    for one, other in ((first, second), (second, first)):
        if checks.copy_of.get(one.name) == other.name:
            return f"'{one.name}' is a copy of '{other.name}', and both are drawn: the same text twice", True
    common = _count_common(first.prefix, second.prefix)
    if not common:
        return "", False
    return f"{common:,} raw texts stand in both: the same text twice", {first.kind, second.kind} == {"raw", "augmented"}


def _not_compared(pairs: Sequence[tuple[BlendSource, BlendSource]]) -> list[str]:
    """A note naming the sources of these pairs that have no lineage."""
    sources = {source.name: source for pair in pairs for source in pair}
    bare = [name for name, source in sources.items() if not read_manifest(source.prefix).lineage]
    if not bare:
        return []
    names = ", ".join(f"'{name}'" for name in bare)
    has = "has" if len(bare) == 1 else "have"
    return [f"whether a text stands in two sources could not be checked: {names} {has} no lineage"]


def _count_common(one: Path, other: Path, named: bool = False) -> int | None:
    # Imported here: pyarrow is heavy, and a run that only reads a blend does not need it.
    from data_prep.blend.copies import count_common

    return count_common(one, other, named)
