"""A token of a dataset -> what it came from: training document, template, pair, checks, and raw characters."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.errors import UserError
from data_prep.indexing.decode import DecodedDocument, Decoder
from data_prep.indexing.inspect import runs_of_document
from data_prep.indexing.layout import bin_path, idx_path, lineage_path
from data_prep.indexing.reader import IndexedDatasetReader, open_dataset
from data_prep.indexing.spans import SpansReader

_MEND = "see what `ipt data verify` says"

Run = tuple[int, int, str, int]


@dataclass(frozen=True, slots=True)
class TracedOrigin:
    """A raw text inside the document: characters [start, end) of `document_id` of the corpus `source`.

    `at` is the character of the training text at which it stands, -1 where that is not known.
    """

    document_id: str
    source: str
    start: int
    end: int
    at: int


@dataclass(frozen=True, slots=True)
class TracedPair:
    """Pair `number` of the document, the origin it was written about, and the checks it passed.

    `origin` is its place among the origins, -1 where none is known.  The texts are None without a tokenizer.
    """

    number: int
    origin: int
    checks: tuple[str, ...]
    question_tokens: int
    answer_tokens: int
    question: str | None
    answer: str | None


@dataclass(frozen=True, slots=True)
class TracedToken:
    """A token: its number in the .bin and its place in the document, its class, and what it belongs to.

    `pair` is the place of the pair of a question or an answer, `origin` that of the raw text of a text or of a pair,
    both -1 where there is none.  For a token of class text `character` is where it starts in the raw document; unless
    `exact`, that is an estimate (see `trace`).
    """

    number: int
    place: int
    id: int
    kind: str
    pair: int
    origin: int
    text: str | None
    character: int | None
    exact: bool


@dataclass(frozen=True, slots=True)
class Trace:
    """A document of a dataset and, if it was asked for, one of its tokens."""

    prefix: str
    document: int
    id: str
    source_file: str
    template: str
    seed: int | None
    first_token: int
    tokens: int
    tokens_by_class: dict[str, int]
    token: TracedToken | None
    pairs: list[TracedPair]
    origins: list[TracedOrigin]


def trace(
    prefix: Path, token: int | None = None, document: int | None = None, tokenizer_dir: Path | None = None
) -> Trace:
    """What document number `document`, or token number `token` counted from the start of the .bin, came from.

    With `tokenizer_dir` texts are decoded, and the characters between a raw text's start and a token counted, which is
    exact for a tokenizer whose tokens spell the text out.
    Errors: a UserError for a number outside of the dataset, a file that is missing or damaged, another tokenizer.
    """
    if (token is None) == (document is None):
        raise UserError("trace", "either a token or a document is to be named", "give --token N or --document N")
    manifest, reader = open_dataset(prefix)
    if manifest.lineage is None:
        problem = "it has no lineage table, so nothing leads back to its texts"
        raise UserError(prefix, problem, "write the dataset again with `ipt data index`")
    decoder = Decoder(tokenizer_dir, manifest, prefix) if tokenizer_dir else None
    number = _document_of(reader, token) if token is not None else _checked(reader, document)
    first, tokens = reader.first_token(number), reader.document(number)
    row = _row(prefix, number, first, len(tokens))
    spans = SpansReader(prefix) if manifest.spans else None
    if spans:
        spans.check_frame(reader.documents)
    runs = runs_of_document(manifest, spans, number, len(tokens))
    if runs and runs[-1][1] != len(tokens):
        raise UserError(prefix, f"its spans do not cover document {number}", _MEND)
    text = _decode(decoder, tokens, runs) if decoder else None
    names = ("document_id", "source", "start", "end", "at")
    origins = [TracedOrigin(*(each[name] for name in names)) for each in row["origins"]]
    pairs = _pairs(row["origins"], runs, text)
    return Trace(
        prefix=str(prefix),
        document=number,
        id=row["id"],
        source_file=row["source_file"],
        template=row["template"],
        seed=row["seed"],
        first_token=first,
        tokens=len(tokens),
        tokens_by_class=_by_class(runs),
        token=_token(token, token - first, tokens, runs, origins, pairs, text) if token is not None else None,
        pairs=pairs,
        origins=origins,
    )


def _checked(reader: IndexedDatasetReader, document: int | None) -> int:
    if document is None or not 0 <= document < reader.documents:
        problem = f"there is no document {document}: they are numbered from 0 to {reader.documents - 1}"
        raise UserError(reader.prefix, problem)
    return document


def _document_of(reader: IndexedDatasetReader, token: int) -> int:
    if not 0 <= token < reader.tokens:
        problem = f"there is no token {token}: they are numbered from 0 to {reader.tokens - 1}"
        raise UserError(bin_path(reader.prefix), problem)
    sequence = bisect_right(reader.sequence_pointers, token * reader.dtype.itemsize) - 1
    found = bisect_right(reader.document_indices, sequence) - 1
    if 0 <= found < reader.documents:
        first = reader.first_token(found)
        if first <= token < first + len(reader.document(found)):
            return found
    raise UserError(idx_path(reader.prefix), f"token {token} is in no document", _MEND)


def _row(prefix: Path, document: int, first: int, tokens: int) -> dict[str, Any]:
    # Imported here: pyarrow takes longer to import than the rest, and a wrong number is told without it.
    from data_prep.indexing.lineage import read_row

    try:
        row = read_row(prefix, document)
    except IndexError:
        raise UserError(lineage_path(prefix), f"has no row for document {document}", _MEND) from None
    if (row["first_token"], row["tokens"]) != (first, tokens):
        problem = f"its row of document {document} is of other tokens than the .idx says"
        raise UserError(lineage_path(prefix), problem, _MEND)
    return row


def _decode(decoder: Decoder, tokens: np.ndarray, runs: list[Run]) -> DecodedDocument:
    control = np.zeros(len(tokens), bool)
    for start, end, kind, _ in runs:
        control[start:end] = kind == "control"
    return decoder.decode(tokens, control)


def _by_class(runs: list[Run]) -> dict[str, int]:
    found: dict[str, int] = {}
    for start, end, kind, _ in runs:
        found[kind] = found.get(kind, 0) + end - start
    return found


def _pairs(origins: list[dict[str, Any]], runs: list[Run], text: DecodedDocument | None) -> list[TracedPair]:
    """The pairs of all origins in their order, and those of texts without an origin, which only the spans know."""
    known = [(place, tuple(checks.split())) for place, origin in enumerate(origins) for checks in origin["checks"]]
    parts: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for start, end, kind, of in runs:
        if kind in ("question", "answer") and of >= 0:
            parts.setdefault((kind, of), []).append((start, end))
    found = []
    for number in sorted({*range(len(known)), *(of for _, of in parts)}):
        origin, checks = known[number] if number < len(known) else (-1, ())
        question, answer = (parts.get((kind, number), []) for kind in ("question", "answer"))
        counts = [sum(end - start for start, end in pieces) for pieces in (question, answer)]
        texts = [_joined(text, pieces) for pieces in (question, answer)]
        found.append(TracedPair(number, origin, checks, counts[0], counts[1], texts[0], texts[1]))
    return found


def _joined(text: DecodedDocument | None, pieces: list[tuple[int, int]]) -> str | None:
    """The text of a question or an answer, with the first word of a piece though its token began with a blank before.

    Such a token (" Who") is of the class of the blank.
    """
    if not text:
        return None
    found = []
    for start, end in pieces:
        before, part = text.part(start - 1, start) if start else "", text.part(start, end)
        cut = before[:1].isspace() and before.split() == [before[1:]] and not part[:1].isspace()
        found.append(before[1:] + part if cut else part)
    return "".join(found).strip()


def _token(
    number: int,
    place: int,
    tokens: np.ndarray,
    runs: list[Run],
    origins: list[TracedOrigin],
    pairs: list[TracedPair],
    text: DecodedDocument | None,
) -> TracedToken:
    run = next(run for run in runs if run[0] <= place < run[1])
    _, _, kind, of = run
    pair = of if kind in ("question", "answer") else -1
    origin = of if kind == "text" else next((each.origin for each in pairs if each.number == pair), -1)
    character, exact = None, False
    if kind == "text" and 0 <= of < len(origins):
        character, exact = _character(place, run, runs, origins[of], text)
    spelled = text.part(place, place + 1) if text else None
    return TracedToken(number, place, int(tokens[place]), kind, pair, origin, spelled, character, exact)


def _character(
    place: int, run: Run, runs: list[Run], origin: TracedOrigin, text: DecodedDocument | None
) -> tuple[int, bool]:
    """The character of the raw document in which a token of a text starts, and whether that is exact."""
    if text is None or origin.at < 0:
        same = [each for each in runs if each[2:] == run[2:]]
        done = sum(end - start for start, end, _, _ in same[: same.index(run)]) + place - run[0]
        total = sum(end - start for start, end, _, _ in same)
        return origin.start + (origin.end - origin.start) * done // total, False
    return origin.start + int(text.starts[place]) - origin.at, text.exact
