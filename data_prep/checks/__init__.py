"""ipt data check: which pairs stay, and a check and a reason for each that goes.

Writes OUT (chains), OUT.dropped.jsonl (pairs, on demand), OUT.leftover.jsonl (texts that lost all their pairs and go
on as raw text), OUT.withheld.jsonl (texts that nobody may train on, with or without pairs) and OUT.summary.json.
Chains are read, checked and written one by one; only hashes are kept of the corpus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from data_prep.checks import decontamination, degenerate, duplicates, form, grounding, length, scored
from data_prep.checks.asking import Respondent
from data_prep.checks.contract import Judge, JudgeMaker
from data_prep.checks.scored import SCORED
from data_prep.checks.sifting import Sifted, sift
from data_prep.errors import UserError, nearest
from data_prep.readers import atomic_file, beside, json_line, read_chains, write_json, write_jsonl
from data_prep.records import AugmentedText, Chain
from data_prep.settings import CheckSettings

__all__ = ["CHECKS", "check"]

# In the order in which they are meant to run: the cheap ones first.
CHECKS: dict[str, JudgeMaker] = {
    "form": form.judge,
    "length": length.judge,
    "duplicates": duplicates.judge,
    "grounding": grounding.judge,
    "degenerate": degenerate.judge,
    "decontamination": decontamination.judge,
}


def check(
    settings: CheckSettings, chains_path: Path | str, out_path: Path | str, scorer: Respondent | None = None
) -> dict[str, Any]:
    """Checks every pair and returns what the summary says: in = kept + the sum of dropped, always.

    Args:
        scorer: asks the model of the check `scored` in place of the one that the settings name.

    Raises:
        UserError: an unknown check, one that lacks its settings, chains that cannot be read, a judge that fails.
    """
    judges = _judges(settings, Path(chains_path))
    sifted: Iterable[Sifted] = (sift(chain, judges) for chain in read_chains(chains_path))
    if SCORED in settings.checks:
        scorer = scorer or scored.open_judge(settings)
        sifted = scored.score(sifted, scorer, settings)
    else:
        scorer = None
    out = Path(out_path)
    with (
        atomic_file(beside(out, "dropped.jsonl")) as dropped,
        atomic_file(beside(out, "leftover.jsonl")) as leftover,
        atomic_file(beside(out, "withheld.jsonl")) as withheld,
    ):
        outputs = _Outputs(settings.write_dropped, dropped, leftover, withheld)
        write_jsonl(out, outputs.kept_chains(sifted))
    if not settings.write_dropped:
        beside(out, "dropped.jsonl").unlink()
    summary = outputs.summary(settings.checks)
    if scorer is not None:
        summary["judge"] = dict(scorer.engine.identity)
    write_json(beside(out, "summary.json"), summary)
    return summary


def _judges(settings: CheckSettings, chains_path: Path) -> dict[str, Judge]:
    known = [*CHECKS, SCORED]
    for name in settings.checks:
        if name not in known:
            raise UserError("checks", f"there is no check named '{name}'", nearest(name, known))
    if SCORED in settings.checks[:-1]:
        raise UserError("checks", f"'{SCORED}' asks a model and is not the last", "name it at the end")
    if settings.decontaminate and "decontamination" not in settings.checks:
        problem = "task files are given, and 'decontamination' is not among the checks"
        raise UserError("decontaminate", problem, "add it to checks, or leave the files out")
    return {name: CHECKS[name](settings, chains_path) for name in settings.checks if name != SCORED}


@dataclass
class _Outputs:
    """Writes what goes beside the chains that stay, and counts everything."""

    write_dropped: bool
    dropped: IO[bytes]
    leftover: IO[bytes]
    withheld: IO[bytes]
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)

    def kept_chains(self, sifted: Iterable[Sifted]) -> Iterator[dict[str, Any]]:
        """The rows of the chains that keep a pair."""
        for each in sifted:
            self._count(each)
            kept = tuple(text for text in self._written(each) if text.pairs)
            if kept:
                self.counts["chains"] += 1
                yield Chain(each.chain.id, kept).to_json()

    def summary(self, checks: tuple[str, ...]) -> dict[str, Any]:
        dropped = {name: {why: n for (by, why), n in self.reasons.items() if by == name} for name in checks}
        names = ("chains", "leftover_texts", "withheld_texts", "withheld_characters")
        totals = {"in": self.counts["in"], "kept": self.counts["kept"], "dropped": dropped}
        return {**totals, **{name: self.counts[name] for name in names}}

    def _count(self, sifted: Sifted) -> None:
        kept = sum(len(text.pairs) for text in sifted.chain.texts)
        self.counts.update({"in": kept + len(sifted.drops), "kept": kept})
        for drop in sifted.drops:
            self.reasons[drop.check, drop.reason] += 1
            if self.write_dropped:
                self.dropped.write(json_line(drop.to_json()))

    def _written(self, sifted: Sifted) -> Iterator[AugmentedText]:
        """The texts that are not withheld; those without pairs are written as left over as well."""
        for text, reason in zip(sifted.chain.texts, sifted.withheld, strict=True):
            if reason is not None:
                self.counts.update({"withheld_texts": 1, "withheld_characters": len(text.text)})
                self.withheld.write(json_line({**text.to_json(), "reason": reason}))
                continue
            if not text.pairs:
                self.counts["leftover_texts"] += 1
                self.leftover.write(json_line({**text.to_json(), "reason": "every pair dropped"}))
            yield text
