"""The records that walk through data preparation, and their JSONL form.

    Document  --synthesize-->  Chain of AugmentedText (text + pairs)  --render-->  TrainingText

Each is a frozen dataclass; `to_json`/`from_json` are its only serialised form, one object a line.
Offsets are counted in characters of the text they belong to, half open: [start, end).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

RECORDS_FORMAT_VERSION = 1

SpanClass = Literal["text", "question", "answer", "template"]


@dataclass(frozen=True, slots=True)
class Document:
    """One raw text.  `id` is stable and unique within a corpus; `source` names the corpus."""

    id: str
    text: str
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Document:
        return cls(row["id"], row["text"], row.get("source", ""), row.get("metadata", {}))


@dataclass(frozen=True, slots=True)
class Pair:
    """One instruction-response pair.

    `question` and `answer` are as the synthesizer wrote them, options and rationale included
    (paper's wire format); `options` lists the options of a multiple-choice question, else empty;
    `rationale` says whether the answer reasons before it concludes.
    """

    question: str
    answer: str
    options: tuple[str, ...] = ()
    rationale: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Pair:
        return cls(row["question"], row["answer"], tuple(row.get("options", ())), bool(row.get("rationale", False)))


@dataclass(frozen=True, slots=True)
class AugmentedText:
    """A text (a document, or the piece [start, end) of a long one) with the pairs written about it."""

    document_id: str
    text: str
    pairs: tuple[Pair, ...] = ()
    start: int = 0
    end: int = -1
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> AugmentedText:
        pairs = tuple(Pair.from_json(pair) for pair in row.get("pairs", ()))
        place = (row.get("start", 0), row.get("end", -1))
        return cls(row["document_id"], row["text"], pairs, *place, row.get("source", ""))


@dataclass(frozen=True, slots=True)
class Chain:
    """The texts of one slot over the rounds, in order: an M-shot training document (paper, section 2.2)."""

    id: str
    texts: tuple[AugmentedText, ...]

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "texts": [text.to_json() for text in self.texts]}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Chain:
        return cls(row["id"], tuple(AugmentedText.from_json(text) for text in row["texts"]))


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) of a training text belong to class `kind`."""

    start: int
    end: int
    kind: SpanClass


@dataclass(frozen=True, slots=True)
class TrainingText:
    """A document as the model will read it, with where each part came from.

    `document_ids` are the raw documents inside; `template` names the styles drawn; `spans` cover
    the text without gap or overlap.
    """

    id: str
    text: str
    document_ids: tuple[str, ...] = ()
    template: str = ""
    spans: tuple[Span, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> TrainingText:
        spans = tuple(Span(**span) for span in row.get("spans", ()))
        return cls(row["id"], row["text"], tuple(row.get("document_ids", ())), row.get("template", ""), spans)
