"""A blend's plan, a run's draws and two blends' differences as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from data_prep.blend.packed import packing_line
from data_prep.blend.plan import PlanRow, PlanTable
from data_prep.settings import AMOUNT_UNITS
from megatron_ipt.cli import tables

_COLUMNS = ("source", "kind", "documents", "tokens", "asked for", "share", "tokens drawn", "epochs", "effective tokens")


def show_plan(table: PlanTable) -> None:
    """A table of each phase, where there are several, and of the whole run; then packing, flags and notes by line."""
    length = "length not given: no epochs"
    if table.train_samples:
        length = f"{_tokens(table.train_samples, table)} in {table.train_samples:,} samples"
    if table.proxy_of:
        length += f", a proxy of {_tokens(table.proxy_of, table)}: each source shrunk alike"
    if len(table.phases) > 1:
        for phase in table.phases:
            until = f"{_tokens(phase.samples, table)} of the run" if phase.samples is not None else "to the end"
            begin = f"from sample {phase.first_sample:,} ({_tokens(phase.first_sample, table)}) on"
            columns = (*_COLUMNS[:-1], "effective so far")
            tables.show(f"{phase.name}, {begin}, {until}", columns, [_cells(row, asked(row)) for row in phase.rows])
    title = f"blend {table.blend_hash[:12]}, sequences of {table.seq_length:,} tokens; {length}"
    tables.show(
        title, _COLUMNS, [_cells(row, "as above" if len(table.phases) > 1 else asked(row)) for row in table.rows]
    )
    told = {row.source: packing_line(row.packing) for row in table.rows if row.packing is not None}
    show_lines([f"{name}: {line}" for name, line in told.items() if line], "packing")
    show_lines([f"{row.source}: {flag}" for row in table.rows for flag in row.flags], "flag")
    show_lines(table.notes, "note")


def show_lines(lines: Sequence[str], label: str) -> None:
    for line in lines:
        tables.console().print(f"{label}: {line}", markup=False, soft_wrap=True)


def _cells(row: PlanRow, wanted: str) -> tuple[object, ...]:
    drawn = tuple("-" if value is None else value for value in (row.tokens_drawn, row.epochs))
    effective = "-" if row.effective_tokens is None else round(row.effective_tokens)
    return (row.source, row.kind, row.documents, row.tokens, wanted, f"{row.share:.4%}", *drawn, effective)


def asked(row: PlanRow) -> str:
    """What the blend file asked for, with its unit."""
    if not row.share:
        return "-"
    if row.unit == "tokens":
        return f"{row.weight:,.0f} tokens"
    return f"{row.unit} {row.weight:.6g}" if row.unit in AMOUNT_UNITS else f"mode {row.unit}"


def _tokens(samples: int, table: PlanTable) -> str:
    return f"{samples * table.seq_length:,} tokens"
