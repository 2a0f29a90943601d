"""Weights that look like another thing than they are: on two scales, or counts of documents.  Pure.

Figures that sum to 1 or 100 are rounded: each may be half a unit of the last digit given off what it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction

from data_prep.blend.model import Blend
from data_prep.blend.weights import decimal_fraction
from data_prep.errors import UserError

# Figures that do not say how they were rounded still are the sum, or the count, that they look like.
_NEAR = 0.005
# Of the whole, the coarsest rounding at which figures tell documents from tokens: two digits.
_COARSEST = Fraction(1, 100)


def scale_notes(blend: Blend, phases: Sequence[int]) -> list[str]:
    """Phases whose weights sum to 1 beside such that sum to 100; `phases` are those that are looked at."""
    sums = {index: sum(amounts_in(blend, index, "weight").values()) for index in range(len(blend.phases))}
    ones = [blend.phases[index].name for index, whole in sums.items() if near(whole, 1)]
    cents = [blend.phases[index].name for index, whole in sums.items() if near(whole, 100)]
    looked_at = {blend.phases[index].name for index in phases}
    if not (ones and cents and looked_at & {*ones, *cents}):
        return []
    told = f"weights of {', '.join(ones)} sum to 1, those of {', '.join(cents)} to 100"
    return [f"{told}; each phase is normalised by itself"]


def check_scale(phase: str, weights: Mapping[str, float], meant: str) -> str:
    """A note for a weight of 1 or less beside ones that sum to about 100, or nothing.

    Errors: a UserError where the small ones sum to 1, which `meant` tells how to have.
    """
    small = {name: weight for name, weight in weights.items() if 0 < weight <= 1}
    large = {name: weight for name, weight in weights.items() if weight > 1}
    if small and large and near(sum(small.values()), 1) and near(sum(large.values()), 100) and len(weights) > 2:
        told = f"the weights of {', '.join(large)} sum to 100, those of {', '.join(small)} to 1"
        raise UserError(phase, told, f"give all of them one scale, or {meant}")
    return _beside_a_hundred(weights)


def _beside_a_hundred(weights: Mapping[str, float]) -> str:
    """The largest weights sum to 100 better than all of them do, and those that are left are 1 or less."""
    ordered = sorted(((name, decimal_fraction(weight)) for name, weight in weights.items() if weight), key=_weight)
    off = abs(sum((weight for _, weight in ordered), Fraction(0)) - 100)
    for count in range(1, len(ordered)):
        rest, large = ordered[:count], ordered[count:]
        whole = sum((weight for _, weight in large), Fraction(0))
        if rest[-1][1] <= 1 and near(float(whole), 100) and abs(whole - 100) < off:
            small = ", ".join(f"{name} {float(weight):g}" for name, weight in rest)
            others = ", ".join(name for name, _ in large)
            return f"{small} beside weights of {others}, which sum to {float(whole):g}: of 1, or of 100?"
    return ""


def _weight(of: tuple[str, Fraction]) -> Fraction:
    return of[1]


def like_documents(blend: Blend, phase: int) -> str:
    """A note where weights or shares are in proportion to documents and not to tokens, and that makes a difference."""
    for unit in ("weight", "share"):
        given = amounts_in(blend, phase, unit)
        sources = [source for source in blend.sources if given.get(source.name)]
        if len(sources) < 2 or len(sources) < _given(blend, phase):
            continue
        amounts = [given[source.name] for source in sources]
        documents, tokens = [source.documents for source in sources], [source.tokens for source in sources]
        by_tokens = _spread([amount / count for amount, count in zip(amounts, tokens, strict=True)])
        if _stand_for(amounts, documents) and not _stand_for(amounts, tokens) and by_tokens >= 1.1:
            if _spread(amounts) < 1.01:
                return ""
            return f"the {unit}s are those of the documents, and they count tokens; for documents say unit: documents"
    return ""


def _stand_for(amounts: Sequence[float], counts: Sequence[int]) -> bool:
    """Whether amounts are in proportion to counts: within _NEAR, or rounded ones within their last digit."""
    if _spread([amount / count for amount, count in zip(amounts, counts, strict=True)]) <= 1 + _NEAR:
        return True
    exact = [decimal_fraction(amount) for amount in amounts]
    # 0.6 beside 0.07 is 0.60: the finest digit is that of all.
    digit = min(_last_digit(amount) for amount in amounts)
    total, most = sum(exact, Fraction(0)), digit * len(exact) / 2
    whole = next((whole for whole in (1, 100) if abs(total - whole) <= most), None)
    if whole is None or digit / whole > _COARSEST:
        return False
    return all(
        abs(amount - Fraction(whole * count, sum(counts))) <= digit / 2
        for amount, count in zip(exact, counts, strict=True)
    )


def _last_digit(amount: float) -> Fraction:
    """The unit of the last digit that was given: 1/100 of 0.07, 1 of 60."""
    exponent = Decimal(repr(amount)).normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return min(Fraction(1), Fraction(10) ** exponent)


def amounts_in(blend: Blend, phase: int, unit: str) -> dict[str, float]:
    """Source -> amount, of those that a phase gives one of this unit."""
    pairs = zip(blend.sources, blend.phases[phase].amounts, strict=False)
    return {source.name: amount[1] for source, amount in pairs if amount and amount[0] == unit}


def _given(blend: Blend, phase: int) -> int:
    """Sources that a phase gives an amount above 0, of any unit."""
    return sum(amount is not None and amount[1] > 0 for amount in blend.phases[phase].amounts)


def near(value: float, target: float) -> bool:
    """Whether a sum is the one that it looks like."""
    return abs(value - target) <= _NEAR * target


def _spread(values: Sequence[float]) -> float:
    return max(values) / min(values)
