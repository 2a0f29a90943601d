"""A chain and the judges -> what stays of it, what goes and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_prep.checks.contract import Judge, TextJudge
from data_prep.records import AugmentedText, Chain, Pair


@dataclass(frozen=True, slots=True)
class Drop:
    """A pair that goes: the check and the reason; `detail` is a model's own words, where there is a model."""

    check: str
    reason: str
    text: AugmentedText
    pair: Pair
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"document_id": self.text.document_id, "start": self.text.start}
        row |= {"check": self.check, "reason": self.reason, "pair": self.pair.to_json()}
        return {**row, "detail": self.detail} if self.detail else row


@dataclass(frozen=True, slots=True)
class Sifted:
    """A chain's texts, each with the pairs that stay, maybe none; `withheld` has a reason for each text or None."""

    chain: Chain
    drops: tuple[Drop, ...]
    withheld: tuple[str | None, ...]


def sift(chain: Chain, judges: Mapping[str, Judge]) -> Sifted:
    """Each pair goes to the judges in their order until one gives a reason; each text to those that judge texts."""
    texts: list[AugmentedText] = []
    drops: list[Drop] = []
    for text in chain.texts:
        verdicts = [_verdict(pair, text, judges) for pair in text.pairs]
        kept = [pair for pair, verdict in zip(text.pairs, verdicts, strict=True) if verdict is None]
        drops += [
            Drop(*verdict, text, pair)
            for pair, verdict in zip(text.pairs, verdicts, strict=True)
            if verdict is not None
        ]
        texts.append(replace(text, pairs=tuple(replace(pair, checks=tuple(judges)) for pair in kept)))
    # A text's pairs may all be gone by now: the text itself is still to be trained on, or not.
    withheld = [_text_verdict(text, judges) for text in chain.texts]
    return Sifted(Chain(chain.id, tuple(texts)), tuple(drops), tuple(withheld))


def without(sifted: Sifted, drops: Sequence[Drop], places: Sequence[tuple[int, int]], check: str) -> Sifted:
    """The pairs at `places`, (text, pair) among those that stayed, go as well; the others have passed `check`."""
    gone = set(places)
    texts = tuple(
        replace(
            text,
            pairs=tuple(
                replace(pair, checks=(*pair.checks, check))
                for number, pair in enumerate(text.pairs)
                if (place, number) not in gone
            ),
        )
        for place, text in enumerate(sifted.chain.texts)
    )
    return replace(sifted, chain=Chain(sifted.chain.id, texts), drops=(*sifted.drops, *drops))


def _verdict(pair: Pair, text: AugmentedText, judges: Mapping[str, Judge]) -> tuple[str, str] | None:
    """The first check that lets the pair not pass, and its reason."""
    for name, judge in judges.items():
        reason = judge(pair, text)
        if reason is not None:
            return name, reason
    return None


def _text_verdict(text: AugmentedText, judges: Mapping[str, Judge]) -> str | None:
    found = (judge.of_text(text) for judge in judges.values() if isinstance(judge, TextJudge))
    return next((reason for reason in found if reason is not None), None)
