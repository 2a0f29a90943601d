"""Tables of the page: each cell has its exact value and its printed form, each table is a CSV as well.  Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

Value = str | int | float | bool | None

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class Cell:
    """`value` goes to the CSV and decides the order, `text` is printed."""

    value: Value
    text: str

    @property
    def is_number(self) -> bool:
        return isinstance(self.value, int | float) and not isinstance(self.value, bool)


@dataclass(frozen=True, slots=True)
class Column:
    """`heading` stands on the page, `name` in the CSV."""

    heading: str
    name: str


@dataclass(frozen=True, slots=True)
class Table:
    """`facts`: two or three columns of unlike things, for which an order by value would mean nothing."""

    anchor: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    facts: bool = False

    @property
    def is_numeric(self) -> list[bool]:
        """Columns whose cells are all numbers or empty: they stand to the right."""
        columns = [[row[index] for row in self.rows] for index in range(len(self.columns))]
        return [
            any(cell.is_number for cell in cells) and all(cell.is_number or cell.value is None for cell in cells)
            for cells in columns
        ]

    @property
    def link(self) -> str:
        return csv_link([column.name for column in self.columns], ([cell.value for cell in row] for row in self.rows))


def csv_link(names: Sequence[str], rows: Iterable[Sequence[Value]]) -> str:
    """A data: address that holds the rows as CSV; numbers as Python writes them, so that they read back exactly."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(names)
    writer.writerows(rows)
    return "data:text/csv;charset=utf-8," + quote(stream.getvalue())


def table(anchor: str, caption: str, columns: str, rows: Iterable[Sequence[Cell]], *, facts: bool = False) -> Table:
    """A table whose columns are given as "heading:name, heading:name"; the name may be left out where both are one."""
    pairs = [column.strip().partition(":") for column in columns.split(",")]
    made = tuple(Column(heading, name or heading.replace(" ", "_")) for heading, _, name in pairs)
    return Table(anchor, caption, made, tuple(tuple(row) for row in rows), facts)


def words(value: str) -> Cell:
    return Cell(value, value)


def count(value: int | None) -> Cell:
    return Cell(value, NONE if value is None else f"{value:,}")


def decimal(value: float | None, digits: int = 4) -> Cell:
    """A number with this many digits after the point."""
    return Cell(value, NONE if value is None else f"{value:,.{digits}f}".replace("-", MINUS))


def signed(value: float | None, digits: int = 4) -> Cell:
    return Cell(value, NONE if value is None else f"{value:+,.{digits}f}".replace("-", MINUS))


def general(value: float | None) -> Cell:
    """Four significant digits, for numbers of any size."""
    return Cell(value, NONE if value is None else f"{value:.4g}".replace("-", MINUS))


def percent(value: float | None) -> Cell:
    """A fraction of 1, in per cent."""
    return Cell(value, NONE if value is None else f"{100 * value:.1f} %")


def seconds(value: float | None) -> Cell:
    if value is None:
        return Cell(None, NONE)
    whole = round(value)
    if value < 60:
        return Cell(value, f"{value:.1f} s")
    if whole < 3600:
        return Cell(value, f"{whole // 60} min {whole % 60:02d} s")
    return Cell(value, f"{whole // 3600} h {whole % 3600 // 60:02d} min")


def memory(value: int | None) -> Cell:
    """Bytes, printed in GiB or MiB."""
    if value is None:
        return Cell(None, NONE)
    return Cell(value, f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB")


def share_of(part: float, whole: float) -> float | None:
    """`part` of `whole` as a fraction; None where there is no whole."""
    return part / whole if whole else None
