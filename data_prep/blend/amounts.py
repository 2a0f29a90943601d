"""Amounts in four units -> the exact part of each source in each phase.  Pure.

| unit | what it asks for | in a phase of L samples |
|---|---|---|
| share | part of the phase's tokens | share |
| epochs | passes over the source | epochs * sequences / L |
| tokens | tokens drawn | tokens / sequence length / L |
| weight | part of what the three above leave, normalised over the weights | weight / sum * rest |

So units may be mixed: what is fixed is taken first and weights divide the rest.  Refused is what contradicts itself:
fixed parts that together are over 1, or under 1 with no weight to take the rest, and epochs or tokens beside weights
where the length of the phase is not known.  Where only fixed amounts stand in the last phase, they give its length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from data_prep.blend.modes import Size, parts_of
from data_prep.blend.weights import decimal_fraction
from data_prep.errors import UserError
from data_prep.settings import MOST_COUNTED, AmountSettings, BlendMode, BlendSettings

Amount = tuple[str, float]
_Exact = tuple[str, Fraction]

# One sample in a hundred thousand: what rounded figures may be off from adding up to the phase.
_SLACK = Fraction(1, 100_000)


@dataclass(frozen=True, slots=True)
class Mix:
    """A phase: from sample `first_sample` on, `parts` of each source (exact, they sum to 1).

    `amounts` are as given, (unit, number), of a mode its name and the part; None for a source that gives nothing.
    """

    name: str
    first_sample: int
    parts: tuple[Fraction, ...]
    amounts: tuple[Amount | None, ...]


def mixes(settings: BlendSettings, sizes: Sequence[Size]) -> tuple[list[Mix], int | None]:
    """The phases, and the samples of the run where they are given or follow from the amounts.

    Errors: a UserError naming the phase or the source whose amounts contradict each other, or a phase behind the end.
    """
    total = samples_of(settings)
    starts = [0, *(-(-phase.from_tokens // settings.seq_length) for phase in settings.phases)]
    for first, second in pairwise(starts):
        if first == second:
            raise UserError("phases", f"two start at sample {first}", "put them a sequence apart at least")
    if total is not None and starts[-1] >= total:
        problem = f"starts at sample {starts[-1]:,}, the run ends at {total:,}"
        raise UserError(f"phase {len(starts)}", problem, "let it start earlier, or train on more tokens")
    found: list[Mix] = []
    drawn = [Fraction(0)] * len(sizes)
    given: list[tuple[str, BlendMode | None, Mapping[str, AmountSettings]]]
    given = [("phase 1" if settings.phases else "sources", settings.mode, settings.sources)]
    given += [(p.name or f"phase {i}", p.mode, p.sources) for i, p in enumerate(settings.phases, 2)]
    for index, (name, mode, sources) in enumerate(given):
        end = starts[index + 1] if index + 1 < len(starts) else total
        length = None if end is None else Fraction(end - starts[index])
        if mode is not None:
            parts = parts_of(mode, sizes, length, decimal_fraction(settings.temperature or 1), drawn)
            if mode == "unimax":
                parts = _without_crumbs(parts, drawn, settings.period)
            shares = tuple(part / sum(parts) for part in parts)
            amounts: tuple[Amount | None, ...] = tuple((mode, float(share)) for share in shares)
        else:
            amounts = tuple(of.amount if (of := sources.get(size.name)) else None for size in sizes)
            shares, length = parts_in_phase(name, amounts, sizes, length, settings)
        found.append(Mix(name, starts[index], shares, amounts))
        if length is not None:
            drawn = [before + share * length for before, share in zip(drawn, shares, strict=True)]
        if end is None and length is not None:
            total = starts[index] + round(length)
    if total is not None and total * settings.seq_length >= MOST_COUNTED:
        problem = f"the amounts ask for a run of {float(total * settings.seq_length):.3g} tokens"
        raise UserError("sources", problem, f"stay below {float(MOST_COUNTED):.3g}")
    return found, total


def _without_crumbs(parts: Sequence[Fraction], drawn: Sequence[Fraction], period: int) -> list[Fraction]:
    """Nothing for a source of which earlier phases left less than a sample in a period."""
    least = sum(parts, Fraction(0)) / period
    return [part if part >= least or not before else Fraction(0) for part, before in zip(parts, drawn, strict=True)]


def samples_of(settings: BlendSettings) -> int | None:
    """The length of the run where it is given [samples]: as many as its tokens take."""
    if settings.train_tokens is not None:
        return -(-settings.train_tokens // settings.seq_length)
    return settings.train_samples


def parts_in_phase(
    phase: str,
    amounts: Sequence[Amount | None],
    sizes: Sequence[Size],
    length: Fraction | None,
    settings: BlendSettings,
) -> tuple[tuple[Fraction, ...], Fraction | None]:
    """The exact part of each source, and the length of the phase [samples] where it is known or follows."""
    exact = [amount and (amount[0], decimal_fraction(amount[1])) for amount in amounts]
    if settings.unit == "documents":
        exact = _by_tokens(phase, exact, sizes)
    drawn = [_samples(amount, size, settings.seq_length) for amount, size in zip(exact, sizes, strict=True)]
    shares = [_of("share", amount) for amount in exact]
    weights = [_of("weight", amount) for amount in exact]
    fixed = shares
    if any(drawn):
        length = length or _length(phase, drawn, shares, weights)
        fixed = [share + samples / length for share, samples in zip(shares, drawn, strict=True)]
    taken = sum(fixed, Fraction(0))
    rest = 1 - taken
    if any(weights):
        if rest <= 0:
            problem = f"shares, epochs and tokens take {_percent(taken)} and leave nothing to the weights"
            raise UserError(phase, problem, "lower them, or train on more tokens")
        whole = sum(weights, Fraction(0))
        return tuple(part + rest * w / whole for part, w in zip(fixed, weights, strict=True)), length
    if abs(rest) > _SLACK:
        asked = _percent(taken)
        if length and any(drawn):
            asked = f"{float(taken * length):,.0f} of {float(length):,.0f} samples"
        problem = f"shares, epochs and tokens add up to {asked}, not to the whole phase"
        raise UserError(phase, problem, "give one source a weight, which takes the rest, or all of them weights")
    return tuple(part / taken for part in fixed), length


def _length(phase: str, drawn: list[Fraction], shares: list[Fraction], weights: list[Fraction]) -> Fraction:
    """What epochs, tokens and shares, without weights, ask a phase of unknown length to have [samples]."""
    if any(weights):
        problem = "epochs or tokens beside weights need the length of the run"
        raise UserError(phase, problem, "set train_tokens, or --train-tokens 100B; or give all of them weights")
    whole = sum(shares, Fraction(0))
    if whole >= 1:
        raise UserError(phase, f"shares of {_percent(whole)} leave nothing to epochs and tokens", "lower them")
    return sum(drawn, Fraction(0)) / (1 - whole)


def _samples(amount: _Exact | None, size: Size, seq_length: int) -> Fraction:
    return _of("epochs", amount) * size.sequences + _of("tokens", amount) / seq_length


def _by_tokens(phase: str, amounts: Sequence[_Exact | None], sizes: Sequence[Size]) -> list[_Exact | None]:
    """Amounts that count documents as such that count tokens; only weights, or only shares, can be converted."""
    units = {amount[0] for amount in amounts if amount}
    if units not in ({"weight"}, {"share"}):
        problem = f"unit: documents converts weights, or shares, not {' and '.join(sorted(units))}"
        raise UserError(phase, problem, "give all sources weights, or leave the unit at tokens")
    if units == {"share"} and abs(1 - sum((amount[1] for amount in amounts if amount), Fraction(0))) > _SLACK:
        raise UserError(phase, "shares of documents do not add up to 1", "mend them, or give all sources weights")
    means = [Fraction(size.tokens, size.documents) for size in sizes]
    return [amount and ("weight", amount[1] * mean) for amount, mean in zip(amounts, means, strict=True)]


def _of(unit: str, amount: _Exact | None) -> Fraction:
    return amount[1] if amount and amount[0] == unit else Fraction(0)


def _percent(part: Fraction) -> str:
    return f"{float(100 * part):.4g} %"
