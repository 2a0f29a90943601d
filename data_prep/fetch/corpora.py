"""Corpora by name: where each comes from, its licence, and how its file becomes documents."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import UserError, nearest
from data_prep.fetch.packages import PackageFile
from data_prep.records import Document


@dataclass(frozen=True, slots=True)
class Corpus:
    """A named corpus; `parse` turns the fetched file into documents."""

    name: str
    description: str
    licence: str
    file: PackageFile
    parse: Callable[[Path], Iterator[Document]]


_BLOCK = re.compile(r'<doc id="([^"]*)" url="([^"]*)" title="([^"]*)">\n(.*?)\n</doc>', re.DOTALL)


def parse_wikipedia_blocks(path: Path, source: str = "wikipedia-sample") -> Iterator[Document]:
    """Documents of WikiExtractor's form: `<doc id url title>`, title line, text, `</doc>`.

    HTML entities (`&amp;`), left over from the extraction, are resolved.
    """
    for identifier, url, title, text in _BLOCK.findall(path.read_text(encoding="utf-8")):
        metadata = {"url": url, "title": html.unescape(title)}
        yield Document(f"wikipedia-{identifier}", html.unescape(text).strip(), source, metadata)


CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            name="wikipedia-sample",
            description="English Wikipedia articles, 2,349 of them, most of them short",
            licence="CC BY-SA 3.0 (Wikipedia contributors; each document's metadata has its address)",
            file=PackageFile(
                package="exllamav2",
                version="0.3.2",
                wheel_sha256="7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e",
                member="exllamav2/conversion/standard_cal_data/wiki.utf8",
                member_sha256="d53fe0aeadf3355eb5d32b48bf8691575244c31caccae88ed46be8e1b40209c7",
            ),
            parse=parse_wikipedia_blocks,
        ),
    )
}


def find_corpus(name: str) -> Corpus:
    """The corpus of that name.

    Raises:
        UserError: no such corpus; suggests the nearest.
    """
    if name not in CORPORA:
        raise UserError("corpus", f"there is no corpus named '{name}'", nearest(name, CORPORA))
    return CORPORA[name]
