"""ipt data render: chains become training text in sampled styles, all other text stays raw.

Writes OUT/augmented.jsonl (one training text a chain), OUT/raw.jsonl (every part of a document that
is in no chain) and OUT/summary.json.  A character of the corpus is in one of the two, never in both.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.draws import draw_index
from data_prep.errors import UserError
from data_prep.readers import atomic_file, json_line, read_chains, read_documents, read_jsonl, write_json
from data_prep.records import AugmentedText, Chain, Document, Span, TrainingText
from data_prep.settings import RenderSettings
from data_prep.templates.styles import Part, Styles, fill, fill_pair, load_styles, pair_kind


def render(
    settings: RenderSettings,
    chains_path: Path | str,
    leftovers: Path | str | Iterable[Path | str],
    documents_path: Path | str,
    out_dir: Path | str,
) -> dict[str, Any]:
    """Renders a corpus and returns what summary.json says: every character is in a chain, raw, or blank.

    Args:
        leftovers: file or files of texts that got or kept no pairs; each must be of the corpus and in no chain.

    Raises:
        UserError: a text that is not of the corpus (any more), or that is used twice.
    """
    folder = Path(out_dir)
    styles = load_styles(settings.language, settings.mode)
    counts: Counter[str] = Counter()
    ledger = Ledger()
    # Both files or neither: one of each rendering would have texts in both, or in none.
    with atomic_file(folder / "augmented.jsonl") as augmented, atomic_file(folder / "raw.jsonl") as raw:
        for chain in _chains(chains_path, ledger, counts):
            augmented.write(json_line(render_chain(chain, styles, settings.seed).to_json()))
        for path in [leftovers] if isinstance(leftovers, Path | str) else leftovers:
            for row in read_jsonl(path):
                ledger.add(AugmentedText.from_json(row), in_chain=False)
                counts["leftover_texts"] += 1
        for text in _raw_texts(documents_path, ledger, counts):
            raw.write(json_line(text.to_json()))
        ledger.check_empty(documents_path)
    summary = {"styles": styles.name, **{name: counts[name] for name in COUNTS}}
    write_json(folder / "summary.json", summary)
    return summary


COUNTS = (
    "documents",
    "characters",
    "chains",
    "chain_texts",
    "chain_characters",
    "pairs",
    "raw_texts",
    "raw_characters",
    "blank_characters",
    "leftover_texts",
)


@dataclass
class Ledger:
    """Which parts of which documents are spoken for, until the document itself comes by."""

    parts: dict[str, list[tuple[AugmentedText, bool]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, text: AugmentedText, in_chain: bool) -> None:
        """Notes that `text` is in a chain, or is known to be raw."""
        self.parts[text.document_id].append((text, in_chain))

    def take(self, document: Document) -> list[tuple[int, int]]:
        """The parts [start, end) of the document that are in chains, in order.

        Raises:
            UserError: a part does not read as the document does there, or two of them overlap.
        """
        taken = []
        last = 0
        for text, in_chain in sorted(self.parts.pop(document.id, ()), key=lambda part: part[0].start):
            end = text.start + len(text.text)
            if document.text[text.start : end] != text.text:
                problem = f"characters {text.start} to {end} are not what was synthesized"
                raise UserError(f"document '{document.id}'", problem, "render with the documents that were synthesized")
            if text.start < last:
                problem = f"characters {text.start} to {last} are used twice"
                raise UserError(f"document '{document.id}'", problem, "give each chain and each leftover once")
            last = end
            if in_chain:
                taken.append((text.start, end))
        return taken

    def check_empty(self, documents_path: Path | str) -> None:
        """Every text must have met its document.

        Raises:
            UserError: some have not.
        """
        if self.parts:
            problem = f"{len(self.parts)} documents of the chains are not in it, '{next(iter(self.parts))}' first"
            raise UserError(documents_path, problem, "render with the documents that were synthesized")


def render_chain(chain: Chain, styles: Styles, seed: int) -> TrainingText:
    """One training text of the chain's texts, each with its pairs; spans cover it without gap."""
    delimiter = draw_index(seed, chain.id, "delimiter", len(styles.lists["delimiters"]))
    parts: list[Part] = []
    names = [f"{styles.name} delimiter={delimiter}"]
    for place, text in enumerate(chain.texts):
        if place:
            parts.append(("template", styles.lists["delimiters"][delimiter]))
        text_parts, name = _render_text(text, styles, seed)
        parts += text_parts
        names.append(name)
    documents = tuple(dict.fromkeys(text.document_id for text in chain.texts))
    return TrainingText(chain.id, "".join(part for _, part in parts), documents, "; ".join(names), spans_of(parts))


def _render_text(text: AugmentedText, styles: Styles, seed: int) -> tuple[list[Part], str]:
    """The parts of a text and its pairs, and the styles drawn, by list and index."""
    identifier = f"{text.document_id}:{text.start}"
    drawn: dict[str, int] = {}

    def choose(name: str) -> str:
        drawn[name] = draw_index(seed, identifier, name, len(styles.lists[name]))
        return styles.lists[name][drawn[name]]

    parts = [*fill(choose("texts"), {"text": text.text}), ("template", choose("lead_ins"))]
    separator = choose("separators")
    for place, pair in enumerate(text.pairs):
        if place:
            parts.append(("template", separator))
        option_line = choose("option_lines") if pair.options else ""
        parts += fill_pair(choose(pair_kind(pair)), option_line, pair)
    return parts, ",".join(f"{name}={index}" for name, index in drawn.items())


def spans_of(parts: Sequence[Part]) -> tuple[Span, ...]:
    """Spans of the joined parts; neighbours of a class are one span, empty parts are none."""
    spans: list[Span] = []
    for kind, part in parts:
        start = spans[-1].end if spans else 0
        if part and spans and spans[-1].kind == kind:
            spans[-1] = Span(spans[-1].start, start + len(part), kind)
        elif part:
            spans.append(Span(start, start + len(part), kind))
    return tuple(spans)


def _chains(path: Path | str, ledger: Ledger, counts: Counter[str]) -> Iterator[Chain]:
    for chain in read_chains(path):
        for text in chain.texts:
            ledger.add(text, in_chain=True)
            counts["chain_characters"] += len(text.text)
            counts["pairs"] += len(text.pairs)
        counts["chains"] += 1
        counts["chain_texts"] += len(chain.texts)
        yield chain


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
            yield TrainingText(identifier, part, (document.id,), "raw", (Span(0, len(part), "text"),))


def gaps(taken: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """The intervals of [0, length) between the taken ones, which are in order and do not overlap."""
    edges = [0, *(edge for interval in taken for edge in interval), length]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]
