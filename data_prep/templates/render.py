"""ipt data render: chains become training text in sampled styles, all other text stays raw.

Writes OUT/augmented.jsonl (the training texts of the chains), OUT/raw.jsonl and OUT/summary.json.  With the layouts
open_book and both, raw.jsonl has every part of a document that is in no chain; with closed_book it has every document
whole, as the pairs stand without their text.  A character of the corpus is a text of augmented.jsonl or of raw.jsonl,
never of both; only pairs are repeated, by the layout both.  Texts that the checks withheld (they hold evaluation
questions) are in neither.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import xxhash

from data_prep.errors import UserError
from data_prep.readers import atomic_file, json_line, read_documents, read_rows, write_json
from data_prep.records import AugmentedText, Chain, Document, Origin, Span, TrainingText
from data_prep.settings import RenderSettings
from data_prep.templates.documents import Rendered, render_chain
from data_prep.templates.input import check_text, sound_chains
from data_prep.templates.modes import WITHOUT_ANSWERS
from data_prep.templates.styles import Styles, load_styles

MEND: Final = "render with the documents that were synthesized: OUT.documents.jsonl.zst of `ipt data synthesize`"
COUNTS = (
    "documents",
    "characters",
    "chains",
    "chain_texts",
    "chain_characters",
    "raw_texts",
    "raw_characters",
    "blank_characters",
    "leftover_texts",
    "withheld_texts",
    "withheld_characters",
    "open_book_documents",
    "closed_book_documents",
    "inverted_documents",
    "pairs",
    "pairs_repeated",
    "answers_lost",
    "unanswerable_options",
    "questions_in_order",
)


def render(
    settings: RenderSettings,
    chains_path: Path | str,
    leftovers: Path | str | Iterable[Path | str],
    documents_path: Path | str,
    out_dir: Path | str,
    withheld: Iterable[Path | str] = (),
) -> dict[str, Any]:
    """Renders a corpus and returns what summary.json says.

    `characters` is the sum of `chain_characters` (in a training text with pairs), `raw_characters`, `blank_characters`
    and `withheld_characters`; `pairs_repeated` stand in two training texts; `answers_lost` were left out by a mode that
    says so; `questions_in_order` kept the order of their options, as the pair itself names them.

    Args:
        leftovers: file or files of texts that got or kept no pairs; each must be of the corpus and in no chain.
        withheld: files of texts that are not to be trained on, raw or with pairs.

    Raises:
        UserError: a text that is not of the corpus (any more), or that is used twice; templates that are not sound.
    """
    folder = Path(out_dir)
    styles = styles_of(settings)
    counts: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    ledger = Ledger()
    # Both files or neither: one of each rendering would have texts in both, or in none.
    with atomic_file(folder / "augmented.jsonl") as augmented, atomic_file(folder / "raw.jsonl") as raw:
        for chain in _chains(chains_path, settings, ledger, counts):
            for document in render_chain(chain, styles, settings):
                _count(document, counts, modes)
                augmented.write(json_line(document.text.to_json()))
        for path in [leftovers] if isinstance(leftovers, Path | str) else leftovers:
            for text in _leftovers(path):
                ledger.add(text, in_raw=True)
                counts["leftover_texts"] += 1
        for path in withheld:
            for text in _leftovers(path):
                ledger.add(text, in_raw=False)
                counts.update({"withheld_texts": 1, "withheld_characters": len(text.text)})
        for rest in _raw_texts(documents_path, ledger, counts):
            raw.write(json_line(rest.to_json()))
        ledger.check_empty(documents_path)
    summary = {
        "templates": styles.name,
        "versions": [f"{name} {version}" for name, version in styles.versions.items()],
        "layout": settings.layout,
        **{name: counts[name] for name in COUNTS},
        "modes": dict(sorted(modes.items())),
    }
    write_json(folder / "summary.json", summary)
    return summary


def styles_of(settings: RenderSettings) -> Styles:
    """The styles that the settings name.

    Raises:
        UserError: they are not sound, or mode and layout leave nothing to write.
    """
    if settings.layout != "open_book" and settings.mode in WITHOUT_ANSWERS:
        problem = f"'{settings.mode}' leaves answers out and '{settings.layout}' texts: questions alone would be left"
        raise UserError("layout", problem, "choose open_book, or another mode")
    return load_styles(settings.language, settings.templates)


class Part(NamedTuple):
    """Characters [start, end) of a document that are spoken for: the hash of how they read, not the text itself.

    `sample` numbers the times that they were synthesized; each of these stands somewhere by itself.
    """

    start: int
    end: int
    digest: int
    sample: int
    in_raw: bool


@dataclass
class Ledger:
    """Which parts of which documents are spoken for, until the document itself comes by."""

    parts: dict[str, list[Part]] = field(default_factory=lambda: defaultdict(list))

    def add(self, text: AugmentedText, in_raw: bool) -> None:
        """Notes that `text` goes on as raw text, or not: it is in a training text with pairs, or withheld."""
        part = Part(text.start, text.start + len(text.text), _digest(text.text), text.sample, in_raw)
        self.parts[text.document_id].append(part)

    def take(self, document: Document) -> list[tuple[int, int]]:
        """The parts [start, end) of the document that are not to be raw text, in order.

        Raises:
            UserError: a part does not read as the document does there, or two of them overlap.
        """
        taken: list[tuple[int, int]] = []
        before: Part | None = None
        for part in sorted(self.parts.pop(document.id, ())):
            if _digest(document.text[part.start : part.end]) != part.digest:
                problem = f"characters {part.start} to {part.end} are not what was synthesized"
                raise UserError(f"document '{document.id}'", problem, MEND)
            other_sample = before is not None and part[:3] == before[:3] and part.sample != before.sample
            if before is not None and part.start < before.end and not other_sample:
                problem = f"characters {part.start} to {before.end} are used twice"
                raise UserError(f"document '{document.id}'", problem, "give each chain and each leftover once")
            before = part
            if not part.in_raw and (part.start, part.end) not in taken[-1:]:
                taken.append((part.start, part.end))
        return taken

    def check_empty(self, documents_path: Path | str) -> None:
        """Every text must have met its document.

        Raises:
            UserError: some have not.
        """
        if self.parts:
            problem = f"{len(self.parts)} documents of the chains are not in it, '{next(iter(self.parts))}' first"
            raise UserError(documents_path, problem, MEND)


def _digest(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _chains(path: Path | str, settings: RenderSettings, ledger: Ledger, counts: Counter[str]) -> Iterator[Chain]:
    with_text = settings.layout != "closed_book"
    for chain in sound_chains(path):
        for text in chain.texts:
            ledger.add(text, in_raw=not with_text)
            counts["chain_characters"] += len(text.text) if with_text else 0
            counts["pairs"] += len(text.pairs)
            counts["pairs_repeated"] += len(text.pairs) if settings.layout == "both" else 0
        counts["chains"] += 1
        counts["chain_texts"] += len(chain.texts)
        yield chain


def _leftovers(path: Path | str) -> Iterator[AugmentedText]:
    for where, row in read_rows(path):
        try:
            text = AugmentedText.from_json(row)
        except (KeyError, TypeError, AttributeError) as error:
            mend = "give what `ipt data synthesize` or `check` wrote beside its chains"
            raise UserError(where, f"not a text of a chain ({type(error).__name__}: {error})", mend) from error
        check_text(where, text)
        yield text


def _count(document: Rendered, counts: Counter[str], modes: Counter[str]) -> None:
    counts.update(document.counts)
    counts["inverted_documents"] += document.inverted
    modes[document.mode] += 1


def _raw_texts(documents_path: Path | str, ledger: Ledger, counts: Counter[str]) -> Iterator[TrainingText]:
    """What the chains leave of each document: the whole of it, or the parts between."""
    for document in read_documents(documents_path):
        counts["documents"] += 1
        counts["characters"] += len(document.text)
        for start, end in gaps(ledger.take(document), len(document.text)):
            part = document.text[start:end]
            if not part.strip():
                counts["blank_characters"] += len(part)
                continue
            counts["raw_texts"] += 1
            counts["raw_characters"] += len(part)
            whole = end - start == len(document.text)
            identifier = document.id if whole else f"{document.id}:{start}-{end}"
            origin = Origin(document.id, document.source, start, end, at=0)
            yield TrainingText(identifier, part, (origin,), spans=(Span(0, len(part), "text", 0),))


def gaps(taken: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """The intervals of [0, length) between the taken ones, which are in order and do not overlap."""
    edges = [0, *(edge for interval in taken for edge in interval), length]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]
