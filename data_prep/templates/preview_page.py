"""A look at rendered documents as one self-contained HTML page: no script, nothing fetched, all content escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as escape_html
from pathlib import Path

from data_prep.readers import atomic_file
from data_prep.records import TrainingText
from data_prep.templates.preview import MEANINGS, counted, facts, kinds, spans
from data_prep.terminal import printable

_STYLE = Path(__file__).with_name("preview.css")


def escape(text: str) -> str:
    """Text of others as content of the page."""
    return escape_html(printable(text))


def write_page(texts: Sequence[TrainingText], path: Path) -> None:
    """Writes the page, atomically."""
    with atomic_file(path) as stream:
        stream.write(page(texts).encode())


def page(texts: Sequence[TrainingText]) -> str:
    """The page as one string."""
    legend = "".join(f'<li><span class="{kind}">{MEANINGS[kind]}</span></li>' for kind in kinds(texts))
    contents = "".join(
        f'<li><a href="#d{place}">{escape(text.id)}</a> <span class="soft">{escape(_words(text))}</span></li>'
        for place, text in enumerate(texts)
    )
    cards = "".join(_card(text, place) for place, text in enumerate(texts))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Training text, {counted(len(texts), 'document')}</title>"
        f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style></head><body>\n"
        f'<header><h1>Training text</h1><p class="soft">{_summary(texts)}</p>'
        f'<nav aria-label="documents"><ol>{contents}</ol></nav></header>\n'
        f'<ul class="legend" aria-label="legend">{legend}</ul>\n'
        f"<main>{cards}</main></body></html>\n"
    )


def _summary(texts: Sequence[TrainingText]) -> str:
    pairs = sum(len(origin.checks) for text in texts for origin in text.origins)
    raw = sum(len(text.origins) for text in texts)
    held = f"{counted(raw, 'text')} with {counted(pairs, 'pair')}"
    said = f"{counted(len(texts), 'document')}, as a model will read them: {held}."
    return f"{said} A small number is that of the pair; it is no part of the text."


def _words(text: TrainingText) -> str:
    """Mode, perhaps inversion, layout."""
    _, *book, mode = [*facts(text)[0][:2], ", ".join(facts(text)[0][2:])]
    return ", ".join(word.replace("_", " ") for word in (mode, *book) if word)


def _card(text: TrainingText, place: int) -> str:
    words, drawn = facts(text)
    chips = "".join(f"<li>{escape(word.replace('_', ' '))}</li>" for word in words[1:])
    body = "".join(
        f'<span class="{shown.kind}"'
        + (f' data-pair="{shown.mark}"' if shown.mark else "")
        + f">{escape(shown.text)}</span>"
        for shown in spans(text)
    )
    origins = "".join(
        f"<tr><td>{escape(origin.source or '-')}</td><td>{escape(origin.document_id)}</td>"
        f'<td class="number">{origin.start:,} to {origin.end:,}</td><td class="number">{len(origin.checks)}</td>'
        f"<td>{escape(', '.join(dict.fromkeys(' '.join(origin.checks).split())) or '-')}</td></tr>"
        for origin in text.origins
    )
    draws = "".join(f"<li>{escape(line)}</li>" for line in drawn)
    seed = "" if text.seed is None else f", seed {text.seed}"
    return (
        f'<article id="d{place}"><h2>{escape(text.id)}</h2><ul class="chips">{chips}</ul>'
        f'<div class="document">{body}</div>'
        "<details><summary>Where it is from, and what was drawn</summary><table><thead><tr><th>source</th>"
        '<th>document</th><th class="number">characters</th><th class="number">pairs</th><th>checks passed</th></tr>'
        f"</thead><tbody>{origins}</tbody></table>"
        f'<p class="soft">Templates {escape(" ".join(words[:1]))}{seed}; for the document, then for each text:</p>'
        f'<ul class="draws">{draws}</ul></details></article>\n'
    )
