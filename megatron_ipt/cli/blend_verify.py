"""ipt blend verify: a run's own record of its draws against the blend's plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import typer

from data_prep.blend.history import check_continues
from data_prep.blend.model import Blend
from data_prep.blend.verify import Fault, Stretch, check_counts, repeated_documents, verify_record
from data_prep.errors import UserError
from megatron_ipt.cli import tables
from megatron_ipt.cli.blend_runs import RunRecord, read_run
from megatron_ipt.cli.blend_tables import show_lines
from megatron_ipt.cli.blend_tokens import spread, unlike_tokens

_FEW = 10
_COLUMNS = ("source", "samples drawn", "planned", "by its share", "off by", "tokens drawn", "epochs")


def verify_run(folder: Path, blend: Path | None, documents: bool, read: int) -> None:
    """Prints the comparison; exit code 1 where a step or a source is off."""
    run = read_run(folder, blend)
    if run.blend_hash is not None and run.saved is not None:
        check_continues(run.blend, run.blend_hash, run.saved, folder)
    faults = [f"a stretch is recorded twice: samples {told}" for told in _recorded_twice(run.stretches)]
    off = verify_record(run.blend, run.stretches)
    faults += [
        f"samples {each.start:,} to {each.stop:,}: {each.drawn} of '{each.source}' where the plan has {each.planned}"
        for each in off
    ]
    faults += _show_draws(run, off)
    again = spread(run.stretches, read)
    faults += unlike_tokens(run, again)
    if documents:
        _show_documents(run.blend, run.consumed)
    show_lines(faults[:_FEW], "fault")
    if faults:
        more = f" ({len(faults) - _FEW} more)" if len(faults) > _FEW else ""
        tables.console().print(f"what was drawn is not what was planned: {len(faults)} faults{more}")
        raise typer.Exit(1)
    samples = sum(stretch.stop - stretch.start for stretch in again)
    told = f"; the tokens of {samples:,} samples were read again, and are what entered the model" if samples else ""
    tables.console().print(f"what was drawn is what was planned, in every recorded step{told}")


def _show_draws(run: RunRecord, off: Sequence[Fault]) -> list[str]:
    """The table of sources; gives the faults in it: a source that is off by a sample or more, or none of the blend."""
    blend = run.blend
    names = [source.name for source in blend.sources]
    drawn: Counter[str] = Counter()
    for stretch in run.stretches:
        drawn.update(stretch.drawn)
    planned = drawn.copy()
    for fault in off:
        planned[fault.source] += fault.planned - fault.drawn
    recorded, whole = drawn.total(), run.consumed
    complete = recorded == whole
    asked = {check.source: check for check in check_counts(blend, 0, whole, drawn)}
    rows, faults = [], []
    for source in blend.sources:
        count, check = drawn[source.name], asked[source.name]
        epochs = count / source.sequences
        used = source.sequences / source.of_sequences
        by_share = f"{check.expected:,.2f}" if complete else "-"
        away = f"{count - check.expected:+.2f}" if complete else f"{count - planned[source.name]:+d}"
        tokens = round(epochs * (source.labels or source.tokens - 1) * used)
        rows.append((source.name, count, planned[source.name], by_share, away, tokens, f"{epochs:.4f}"))
        if complete and not check.within:
            faults.append(f"{source.name}: off by {away} samples from its shares (limit {check.limit})")
    title = f"{run.folder}, blend {blend.hash[:12]}: {recorded:,} of {whole:,} samples recorded"
    tables.show(title, _COLUMNS, rows)
    if not complete:
        told = "some steps are not in metrics.jsonl: it was written by an earlier version, or cut"
        show_lines([told], "note")
    strangers = sorted(drawn.keys() - set(names))
    return faults + [f"'{name}' is no source of the blend, and gave {drawn[name]} samples" for name in strangers]


def _show_documents(blend: Blend, consumed: int) -> None:
    """How many documents of each source were drawn how often."""
    counts = [repeated_documents(blend, index, drawn) for index, drawn in enumerate(blend.schedule.counts(consumed))]
    times = sorted({number for found in counts for number in found})
    shown = [[found.get(number, 0) for number in times] for found in counts]
    rows = [(source.name, *row) for source, row in zip(blend.sources, shown, strict=True)]
    columns = ("source", *(f"{number} times" if number != 1 else "once" for number in times))
    tables.show("documents by how often they were drawn", columns, rows)


def _recorded_twice(stretches: tuple[Stretch, ...]) -> list[str]:
    ordered = sorted(stretches, key=lambda stretch: (stretch.start, stretch.stop))
    return [f"{second.start:,} to {first.stop:,}" for first, second in pairwise(ordered) if second.start < first.stop]


def position(run: RunRecord) -> int:
    """The sample from which a resumed run goes on.  Errors: a UserError without a checkpoint."""
    if run.saved is None:
        raise UserError(run.folder, "no checkpoint to go on from", "say where the phase begins: --from 60B")
    return run.saved
