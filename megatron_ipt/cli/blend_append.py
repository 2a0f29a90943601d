"""ipt blend append: a further phase, from a run's position on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.blend import append, mistakes, plan_table, read_blend, write_blend
from data_prep.blend.checks import Checks, read_plan, write_plan
from data_prep.blend.model import Blend
from data_prep.blend.plan import with_packing
from data_prep.errors import UserError, nearest
from data_prep.settings import MeantMistake, SourceSettings
from megatron_ipt.cli.blend import count
from megatron_ipt.cli.blend_runs import RunRecord, read_run
from megatron_ipt.cli.blend_tables import show_lines, show_plan
from megatron_ipt.cli.blend_verify import position


@dataclass(frozen=True, slots=True)
class Wanted:
    """A phase as it is asked for.  `begin` and the others as `ipt blend append` takes them."""

    weights: Mapping[str, float]
    added: Mapping[str, SourceSettings]
    begin: str | None
    train_tokens: int | None = None
    max_epochs: Mapping[str, float] = field(default_factory=dict)
    allow: tuple[MeantMistake, ...] = ()


def append_phase(place: Path, wanted: Wanted, out: Path | None) -> None:
    """Writes the blend with its new phase, and plan.json beside it, and prints the plan."""
    run = read_run(place) if place.is_dir() else None
    path = run.blend_path if run else place
    old = run.blend if run else read_blend(path)
    first = _first_sample(old, run, wanted.begin)
    new = append(old, first, wanted.weights, wanted.added)
    planned, kept = read_plan(path.with_name("plan.json"), old)
    checks = _checks(kept or Checks(), wanted, new)
    samples, unknown = _length(new, wanted, planned, first)
    notes = [*_gone(old, first), *unknown, *_told_of(new, wanted)]
    if kept is None:
        told = f"{path.with_name('plan.json')} does not say what the blend was held against"
        notes.append(f"{told}: caps of {checks.max_epochs:g} and {checks.refuse_epochs:g} epochs, no held-out text")
    notes += checked(new, checks, wanted.added)
    table = plan_table(new, samples, checks.max_epochs, checks.own_epochs, notes=tuple(notes))
    mistakes.check_epochs(table.epochs, checks, mistakes.BY_OPTION)
    target = out or path
    target.parent.mkdir(parents=True, exist_ok=True)
    write_blend(new, target)
    table = with_packing(table, new)
    write_plan(target.with_name("plan.json"), table.to_json(), checks)
    show_plan(table)
    show_lines([f"{target}: the first {first:,} samples are those of blend {old.hash[:12]}"], "wrote")


def checked(blend: Blend, checks: Checks, added: Collection[str]) -> tuple[str, ...]:
    """What is to be told of the last phase and of the sources that it brings; a UserError for a mistake."""
    # Its weights count tokens, whatever those of the blend file did.
    by_tokens = checks.model_copy(update={"unit": "tokens"})
    last = [len(blend.phases) - 1]
    notes = mistakes.notes(blend, by_tokens, last, mistakes.BY_OPTION)
    return (*notes, *mistakes.check_texts(blend, checks, added, mistakes.BY_OPTION))


def _checks(kept: Checks, wanted: Wanted, blend: Blend) -> Checks:
    """What the plan was held against, and what the phase adds; a UserError for a name that is no source."""
    names = [source.name for source in blend.sources]
    for name, epochs in wanted.max_epochs.items():
        if name not in names:
            raise UserError(f"--max-epochs {name}", "no such source", nearest(name, names))
        if not epochs:
            raise UserError(f"--max-epochs {name}", "0 epochs are no limit", "leave the source without a weight")
    own = {name: of.max_epochs for name, of in wanted.added.items() if of.max_epochs}
    copies = {name: of.copy_of for name, of in wanted.added.items() if of.copy_of}
    for name, raw in copies.items():
        if raw not in names:
            raise UserError(f"--source {name}", f"copy_of: no source '{raw}'", nearest(raw, names))
    # Mode unimax keeps all sources within max_epochs, and a phase behind it may not undo that.
    unimax = any(amount and amount[0] == "unimax" for phase in blend.phases for amount in phase.amounts)
    capped = dict.fromkeys(names, kept.max_epochs) if unimax else {}
    changes = {
        "own_epochs": {**capped, **kept.own_epochs, **own, **wanted.max_epochs},
        "copy_of": {**kept.copy_of, **copies},
        "allow": tuple(dict.fromkeys((*kept.allow, *wanted.allow))),
    }
    return kept.model_copy(update=changes)


def _length(blend: Blend, wanted: Wanted, planned: int | None, first: int) -> tuple[int | None, list[str]]:
    """The samples of the run, None where it goes on beyond what was planned and is not told how far."""
    if wanted.train_tokens is not None:
        samples = -(-wanted.train_tokens // blend.seq_length)
        if samples <= first:
            problem = f"the run ends at sample {samples:,}, the phase begins at {first:,}"
            raise UserError("--train-tokens", problem, "give all tokens of the run")
        return samples, []
    if planned is not None and planned > first:
        return planned, []
    return None, ["the length of the run is not known, so no epochs were checked: say --train-tokens"]


def _told_of(blend: Blend, wanted: Wanted) -> list[str]:
    """How a new source is read where that was not said."""
    found = []
    for source in blend.sources:
        if source.name in wanted.added and not {"policy", "loss"} <= wanted.added[source.name].model_fields_set:
            found.append(f"'{source.name}' is packed by policy {source.policy}, its loss is of {source.loss}")
    return found


def _first_sample(blend: Blend, run: RunRecord | None, begin: str | None) -> int:
    """Where the phase begins; UserError for a run that is past it."""
    if begin in (None, "now"):
        if run is None:
            raise UserError(
                "--from", "where the phase begins is not said", "write --from 60B, or give the run's folder"
            )
        return position(run)
    assert begin is not None
    first = -(-count("--from", begin) // blend.seq_length)
    if run is not None and run.saved is not None and first < run.saved:
        tokens = run.saved * blend.seq_length
        problem = f"sample {first:,} lies in the run's past: its checkpoint has consumed {run.saved:,} samples"
        raise UserError("--from", problem, f"begin at {tokens:,} tokens or later")
    return first


def _gone(blend: Blend, first: int) -> tuple[str, ...]:
    later = [phase.name or f"from sample {phase.first_sample:,} on" for phase in blend.phases]
    gone = [name for name, phase in zip(later, blend.phases, strict=True) if phase.first_sample >= first]
    return (f"the phases that would have come are replaced: {', '.join(gone)}",) if gone else ()
