"""What a page is made of: a head, and sections of sentences, plots, tables and examples.  Pure."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ipt.report.bars import Bars, Sunburst
from megatron_ipt.report.curves import Plot
from megatron_ipt.report.dots import Dots
from megatron_ipt.report.tables import Table


@dataclass(frozen=True, slots=True)
class ExamplePair:
    """A pair as shown: long ones clipped."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Example:
    """A text with its pairs as shown; `place` says which part of its document it is."""

    document_id: str
    source: str
    place: str
    text: str
    pairs: tuple[ExamplePair, ...]
    more_pairs: int


@dataclass(frozen=True, slots=True)
class Section:
    """One section of the page: sentences first, then figures, tables and examples."""

    anchor: str
    title: str
    sentences: tuple[str, ...]
    plots: tuple[Plot | Dots | Bars | Sunburst, ...] = ()
    tables: tuple[Table, ...] = ()
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True)
class Tile:
    """One of the few numbers at the top."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """The top of the page; `date` is of the newest file, empty where there is none."""

    name: str
    date: str
    summary: str
    tiles: tuple[Tile, ...]
