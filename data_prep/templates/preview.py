"""A look at rendered documents: in the terminal here, as an HTML page in `preview_page`.

Both show a document with its spans in colour, the pair that each question and answer is of, where its texts are from,
and what was drawn for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from data_prep.records import SpanClass, TrainingText
from data_prep.settings import RenderSettings
from data_prep.templates.documents import render_chain
from data_prep.templates.input import sound_chains
from data_prep.templates.render import styles_of
from data_prep.terminal import printable

MEANINGS: Final[dict[SpanClass, str]] = {
    "text": "raw text",
    "question": "question, its options",
    "answer": "answer",
    "template": "wording of the template",
    "control": "control token",
}
_COLOURS: Final[dict[SpanClass, str]] = {
    "text": "default",
    "question": "bold blue",
    "answer": "bold dark_orange3",
    "template": "dim",
    "control": "reverse magenta",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """A span to show: `mark` is the number of its pair where a question or an answer begins, else empty."""

    kind: SpanClass
    text: str
    mark: str


def counted(number: int, name: str) -> str:
    """`1 document`, `2 documents`."""
    return f"{number} {name}" + "s" * (number != 1)


def documents(settings: RenderSettings, chains_path: Path | str, count: int) -> list[TrainingText]:
    """The first `count` training texts of the chains; nothing is written.

    Raises:
        UserError: as `render` does, of the chains and the templates.
    """
    styles = styles_of(settings)
    rendered = (
        document.text for chain in sound_chains(chains_path) for document in render_chain(chain, styles, settings)
    )
    return list(islice(rendered, count))


def spans(text: TrainingText) -> Iterator[Shown]:
    """The spans of a training text as they are shown; what no span covers is template."""
    last: tuple[SpanClass, int] | None = None
    for span in text.spans:
        pair = (span.kind, span.of) if span.kind in ("question", "answer") else None
        mark = str(span.of + 1) if pair and pair != last else ""
        last = pair or last
        yield Shown(span.kind, printable(text.text[span.start : span.end]), mark)


def kinds(texts: Sequence[TrainingText]) -> list[SpanClass]:
    """The classes that occur, in the order of the legend."""
    met = {span.kind for text in texts for span in text.spans}
    return [kind for kind in MEANINGS if kind in met]


def facts(text: TrainingText) -> tuple[list[str], list[str]]:
    """What a training text's template says: words about the document, and what was drawn for it and each text."""
    head, *drawn = text.template.split("; ")
    words = [word for word in head.split() if "=" not in word]
    own = [word for word in head.split() if "=" in word]
    return words, [line.replace(",", "  ").replace("=", " ") for line in [*own, *drawn] if line]


def show(texts: Sequence[TrainingText], console: Console) -> None:
    """Prints the documents, a legend first."""
    legend = Text("   ").join(Text(f" {MEANINGS[kind]} ", _COLOURS[kind]) for kind in kinds(texts))
    console.print(
        legend, Text(f"{counted(len(texts), 'document')}; a small number is that of the pair", "dim"), sep="\n"
    )
    for text in texts:
        console.print(_panel(text))


def _panel(text: TrainingText) -> Panel:
    body = Text()
    for shown in spans(text):
        body.append(_superscript(shown.mark), "dim")
        body.append(shown.text, _COLOURS[shown.kind])
    words, drawn = facts(text)
    lines = [
        f"{origin.source or 'document'} {origin.document_id} [{origin.start}:{origin.end}], pairs: {len(origin.checks)}"
        for origin in text.origins
    ]
    notes = Text(printable("\n".join([*lines, *drawn])), "dim")
    title = Text(printable(" · ".join([text.id, *words[1:], *words[:1]])), "bold")
    return Panel(Group(body, Text(), notes), title=title, title_align="left", border_style="dim", padding=(1, 2))


def _superscript(mark: str) -> str:
    return mark.translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
