"""ipt data check: which pairs stay, and a check and a reason for each that goes.

Writes OUT (chains), OUT.dropped.jsonl (pairs), OUT.leftover.jsonl (texts that lost all their pairs
and go on as raw text) and OUT.summary.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.checks import duplicates, form, grounding, length
from data_prep.checks.contract import Judge, JudgeMaker
from data_prep.errors import UserError, nearest
from data_prep.readers import beside, read_chains, write_json, write_jsonl
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import CheckSettings

__all__ = ["CHECKS", "check"]

# In the order in which they are meant to run: the cheap ones first.
CHECKS: dict[str, JudgeMaker] = {
    "form": form.judge,
    "length": length.judge,
    "duplicates": duplicates.judge,
    "grounding": grounding.judge,
}


def check(settings: CheckSettings, chains_path: Path | str, out_path: Path | str) -> dict[str, Any]:
    """Checks every pair and returns what the summary says: in = kept + the sum of dropped, always.

    Raises:
        UserError: an unknown check, or the chains cannot be read.
    """
    judges = _judges(settings, Path(chains_path))
    chains: list[Chain] = []
    dropped: list[dict[str, Any]] = []
    leftover: list[AugmentedText] = []
    total = 0
    for chain in read_chains(chains_path):
        total += sum(len(text.pairs) for text in chain.texts)
        texts = [_check_text(text, judges, dropped) for text in chain.texts]
        leftover += [text for text in texts if not text.pairs]
        if any(text.pairs for text in texts):
            chains.append(Chain(chain.id, tuple(text for text in texts if text.pairs)))
    out = Path(out_path)
    write_jsonl(out, (chain.to_json() for chain in chains))
    write_jsonl(beside(out, "dropped.jsonl"), dropped)
    write_jsonl(
        beside(out, "leftover.jsonl"),
        ({**text.to_json(), "reason": "every pair dropped"} for text in leftover),
    )
    reasons = Counter((row["check"], row["reason"]) for row in dropped)
    summary = {
        "in": total,
        "kept": sum(len(text.pairs) for chain in chains for text in chain.texts),
        "dropped": {name: {why: n for (by, why), n in reasons.items() if by == name} for name in judges},
        "chains": len(chains),
        "leftover_texts": len(leftover),
    }
    write_json(beside(out, "summary.json"), summary)
    return summary


def _judges(settings: CheckSettings, chains_path: Path) -> dict[str, Judge]:
    for name in settings.checks:
        if name not in CHECKS:
            raise UserError("checks", f"there is no check named '{name}'", nearest(name, CHECKS))
    return {name: CHECKS[name](settings, chains_path) for name in settings.checks}


def _check_text(text: AugmentedText, judges: Mapping[str, Judge], dropped: list[dict[str, Any]]) -> AugmentedText:
    """The text with the pairs that stay; those that go are added to `dropped`."""
    kept: list[Pair] = []
    for pair in text.pairs:
        verdicts = ((name, judge(pair, text)) for name, judge in judges.items())
        name, reason = next(((name, reason) for name, reason in verdicts if reason), ("", None))
        if reason is None:
            kept.append(replace(pair, checks=tuple(judges)))
        else:
            row = {"document_id": text.document_id, "start": text.start, "check": name, "reason": reason}
            dropped.append({**row, "pair": pair.to_json()})
    return replace(text, pairs=tuple(kept))
