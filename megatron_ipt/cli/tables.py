"""Small tables for the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def console() -> Console:
    """stdout; 120 columns wide where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; numbers stand to the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    kept = [[_text(value) for value in row] for row in rows]
    for index, column in enumerate(columns):
        numeric = index > 0 and bool(kept) and all(_is_number(row[index]) for row in kept)
        table.add_column(column, justify="right" if numeric else "left")
    for row in kept:
        table.add_row(*row)
    console().print(table)


def show_counts(title: str, counts: Mapping[str, Any]) -> None:
    """Print the numbers of a summary, nested ones by their dotted name."""
    show(title, ("", "count"), [(name, value) for name, value in _flat(counts) if isinstance(value, int | float)])


def _flat(counts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in counts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}: ")
        else:
            yield prefix + name, value


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _is_number(text: str) -> bool:
    return text in ("", "-") or text.replace(",", "").replace(".", "").removeprefix("-").isdigit()
