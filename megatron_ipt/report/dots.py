"""A figure of points in rows, one row a thing compared, as plain data.  Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DotRow:
    """A thing compared: a value for each group, their mean, and their standard deviation."""

    name: str
    values: tuple[float, ...]
    mean: float
    sd: float


@dataclass(frozen=True, slots=True)
class Dots:
    """`groups` name the points of a row; the mean of row number `reference` and its noise are shown behind all rows."""

    anchor: str
    caption: str
    alt: str
    x_label: str
    groups: tuple[str, ...]
    rows: tuple[DotRow, ...]
    reference: int
    noise: str
    link: str
    large: bool = True
