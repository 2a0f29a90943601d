"""Parts on any scale -> whole numbers of samples in one period of the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def integer_shares(weights: Sequence[float | Fraction], period: int) -> list[int]:
    """Shares n_s >= 0 that sum to `period`, each less than one from its exact part of it (largest remainder).

    Exact arithmetic, ties to the earlier source: the same on every machine.  A weight of 0 gets no share.
    Errors: a ValueError unless every weight is finite and at least 0, one of them above.
    """
    exact = [Fraction(weight) for weight in weights]
    if not exact or min(exact) < 0 or not any(exact):
        raise ValueError(f"weights must be at least 0, one of them above: {list(map(float, weights))}")
    quotas = [weight * period / sum(exact) for weight in exact]
    shares = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda source: shares[source] - quotas[source])
    for source in by_remainder[: period - sum(shares)]:
        shares[source] += 1
    return shares


def decimal_fraction(value: float) -> Fraction:
    """The number that was written: 0.1 is 1/10, not the binary number nearest to it."""
    return Fraction(repr(value))
