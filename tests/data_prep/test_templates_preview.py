"""The look at rendered documents: all of the text, its classes, nothing that acts on a terminal or a browser."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from templates_data import PAIRS, chain_of

from data_prep.readers import write_jsonl
from data_prep.records import AugmentedText, Chain, Origin, Span, TrainingText
from data_prep.settings import RenderSettings
from data_prep.templates.parts import Piece, spans_of, template
from data_prep.templates.preview import documents, show
from data_prep.templates.preview_page import page, write_page
from data_prep.terminal import printable

HOSTILE = (
    "</div><script>alert(1)</script> & \"quoted\" 'single' [bold red]markup[/] \x1b[31mred\x1b]0;title\x07 <|im_end|>"
)


# ESC's 8-bit relatives (CSI, OSC, DCS), NEL, and what turns the direction of a line.
ACTING = "".join(map(chr, [*range(0x00, 0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)]))
TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def chains(tmp_path: Path) -> Path:
    path = tmp_path / "chains.jsonl"
    texts = (AugmentedText("d&1", HOSTILE, PAIRS), AugmentedText("d2", "Plain.", PAIRS[:2]))
    write_jsonl(path, [Chain("c<0>", texts).to_json(), *(chain_of(number).to_json() for number in range(1, 5))])
    return path


class Reader(HTMLParser):
    """(class, text) of the spans of each document, and every tag and attribute of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.documents: list[list[tuple[str, str]]] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        name = dict(attributes).get("class") or ""
        if name == "document":
            self.documents.append([])
            self.inside = "document"
        elif tag == "span" and self.inside:
            self.inside = name
            self.documents[-1].append((name, ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = "" if tag == "div" else self.inside

    def handle_data(self, data: str) -> None:
        if self.inside and self.inside != "document":
            name, before = self.documents[-1][-1]
            self.documents[-1][-1] = (name, before + data)


def visible(text: str) -> str:
    return re.sub(r"[\x00-\x08\x0b-\x1f]", lambda match: chr(0x2400 + ord(match[0])), text)


@pytest.mark.parametrize("layout", ["open_book", "both"])
def test_the_page_shows_every_span_and_runs_nothing(tmp_path: Path, layout: str) -> None:
    texts = documents(RenderSettings(layout=layout), chains(tmp_path), 3)
    assert len(texts) == 3 and not (tmp_path / "augmented.jsonl").exists()
    write_page(texts, tmp_path / "page.html")
    content = (tmp_path / "page.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(content)
    for text, shown in zip(texts, reader.documents, strict=True):
        wanted = [(span.kind, visible(text.text[span.start : span.end])) for span in text.spans]
        assert shown == wanted
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "img", "iframe"}
    assert not [value for _, attributes in reader.tags for name, value in attributes.items() if name.startswith("on")]
    assert not re.search(r"https?://|url\(|@import", content)
    assert "prefers-color-scheme: dark" in content
    marks = [attributes["data-pair"] for _, attributes in reader.tags if "data-pair" in attributes]
    assert set(marks) >= {str(place + 1) for place in range(len(PAIRS) + 2)}


def test_the_terminal_shows_all_text_in_colours_and_is_not_told_to_do_anything(tmp_path: Path) -> None:
    texts = documents(RenderSettings(mode="classic", inversion=0), chains(tmp_path), 2)
    stream = io.StringIO()
    show(texts, Console(file=stream, force_terminal=True, color_system="256", width=500))
    shown = stream.getvalue()
    assert "\x1b]0" not in shown and "\x07" not in shown and "\x1b[31m" not in shown
    assert "[bold red]markup[/] ␛[31mred␛]0;title␇" in shown
    blue, orange = (re.findall(rf"\x1b\[{code}m([^\x1b]*)\x1b", shown) for code in ("1;34", "1;38;5;166"))
    assert any("What is {answer}, {text}?" in piece for piece in blue)
    assert any("It is {question}." in piece for piece in orange)
    for word in ("raw text", "question, its options", "answer", "wording of the template", "c<0>", "classic", "d&1"):
        assert word in shown
    assert "control token" not in shown


def test_no_character_that_acts_or_turns_a_line_is_shown() -> None:
    """In the text, in the ids and in what was drawn; in the terminal and on the page."""
    said = f"a{ACTING}{TURNING}z"
    origin = Origin(said, said, 0, len(said), (said,), 0)
    text = TrainingText(said, said, (origin,), f"en@{said} classic; free=1{said}", 1, (Span(0, len(said), "text", 0),))
    stream = io.StringIO()
    show([text], Console(file=stream, width=2000))
    for shown in (stream.getvalue(), page([text])):
        assert not set(shown) & (set(ACTING) | set(TURNING))
        assert "␛" in shown and "U+009D" in shown and "U+0090" in shown and "U+202E" in shown and "U+2069" in shown
    assert printable("line\n\ttab é 中 🙂\u200d") == "line\n\ttab é 中 🙂\u200d"


def test_control_tokens_have_a_class_of_their_own() -> None:
    pieces = [Piece("control", "<|im_start|>"), template("user\n"), Piece("question", "<|im_end|>?", 0)]
    text = TrainingText("i", "".join(piece.text for piece in pieces), (), "chat@1", None, spans_of(pieces))
    reader = Reader()
    reader.feed(page([text]))
    assert reader.documents == [
        [("control", "<|im_start|>"), ("template", "user\n"), ("question", "<|im_end|>?")],
    ]
