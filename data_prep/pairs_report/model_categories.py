"""What a model called the pairs that it was asked about, beside what the rules call them.

asked = named + unreadable + failed, always; agreement is counted over those that were named.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data_prep.pairs_report.sample import DrawnPair

# Replies that were no name, and failures, told in the summary: the commonest.
MOST_WORDS = 20
# Standard deviations of a normal distribution that hold 95 % of it.
Z_95 = 1.959964


@dataclass(frozen=True, slots=True)
class NamedPair:
    """`category` is None where there is no name; `words` are the model's reply, or the engine's where it `failed`."""

    drawn: DrawnPair
    category: str | None
    words: str
    failed: bool

    def to_json(self) -> dict[str, Any]:
        status = "failed" if self.failed else "unreadable" if self.category is None else "named"
        place = {"document_id": self.drawn.document_id, "start": self.drawn.start}
        names = {"rules": self.drawn.rules, "model": self.category, "status": status, "words": self.words}
        return {**place, "question": self.drawn.pair.question, "answer": self.drawn.pair.answer, **names}


@dataclass(frozen=True)
class ModelCategories:
    """The pairs that were asked about, drawn from `population`, those that the rules put into `only` or all.

    `engine` is the identity of the model's engine.
    """

    engine: Mapping[str, Any]
    population: int
    only: tuple[str, ...]
    pairs: Sequence[NamedPair]

    @cached_property
    def confusion(self) -> Counter[tuple[str, str]]:
        """Pairs by (the rules' name, the model's)."""
        return Counter((each.drawn.rules, each.category) for each in self.pairs if each.category is not None)

    @cached_property
    def unreadable(self) -> Counter[str]:
        """Replies that are no name."""
        return Counter(each.words for each in self.pairs if each.category is None and not each.failed)

    @cached_property
    def failed(self) -> Counter[str]:
        """Calls that failed, by the engine's words."""
        return Counter(each.words for each in self.pairs if each.failed)

    @property
    def named(self) -> int:
        return self.confusion.total()

    @property
    def agreeing(self) -> int:
        return sum(number for (rules, model), number in self.confusion.items() if rules == model)

    @property
    def agreement(self) -> float | None:
        """The share of named pairs that the model calls as the rules do; None where none is named."""
        return self.agreeing / self.named if self.named else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the share in all of the population lies, 95 % (Wilson 1927); None where none is named."""
        return wilson(self.agreeing, self.named) if self.named else None

    @property
    def kappa(self) -> float | None:
        """Agreement beyond what chance gives, 1 at most (Cohen 1960); None where chance alone agrees on all."""
        rules, model = self.column(0), self.column(1)
        chance = sum(rules[name] * model[name] for name in rules) / (self.named**2 or 1)
        return None if self.agreement is None or chance == 1 else (self.agreement - chance) / (1 - chance)

    def column(self, which: int) -> Counter[str]:
        """Named pairs by category: of the rules (0) or of the model (1)."""
        found: Counter[str] = Counter()
        for names, number in self.confusion.items():
            found[names[which]] += number
        return found

    def to_json(self) -> dict[str, Any]:
        """Counts as the summary tells them."""
        counts = {
            "population": self.population,
            "only": list(self.only),
            "asked": len(self.pairs),
            "named": self.named,
            "unreadable": self.unreadable.total(),
            "failed": self.failed.total(),
        }
        shares = {"agreement": self.agreement, "agreement_95": self.interval, "kappa": self.kappa}
        confusion = [{"rules": rules, "model": model, "pairs": n} for (rules, model), n in self.confusion.most_common()]
        words = {
            "unreadable_replies": dict(self.unreadable.most_common(MOST_WORDS)),
            "failures": dict(self.failed.most_common(MOST_WORDS)),
        }
        columns = {"rules": dict(self.column(0).most_common()), "model": dict(self.column(1).most_common())}
        return {"engine": dict(self.engine), **counts, **shares, **columns, "confusion": confusion, **words}


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The shares p for which `hits` of `total` are within 1.96 deviations of what is expected (Wilson 1927)."""
    square = Z_95**2
    middle = (hits + square / 2) / (total + square)
    half = Z_95 / (total + square) * math.sqrt(hits * (total - hits) / total + square / 4)
    share = hits / total  # lies between both, but for the last bit
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
