"""The records that walk through data preparation, and their JSONL form.

    Document  --synthesize-->  Chain of AugmentedText (text + pairs)  --render-->  TrainingText

Each is a frozen dataclass; `to_json`/`from_json` are its only serialised form, one object a line.
Offsets are counted in characters of the text they belong to, half open: [start, end).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

SpanClass = Literal["text", "question", "answer", "template", "control"]
SPAN_LETTERS: Final[Mapping[SpanClass, str]] = {
    "text": "t",
    "question": "q",
    "answer": "a",
    "template": ".",
    "control": "c",
}
_SPAN_CLASSES = {letter: kind for kind, letter in SPAN_LETTERS.items()}


def _columns(record: Any) -> dict[str, Any]:
    """The fields of a record in their order, as they are: dataclasses.asdict copies what is inside, and is slow."""
    return {name: getattr(record, name) for name in record.__slots__}


@dataclass(frozen=True, slots=True)
class Document:
    """One raw text.  `id` is stable and unique within a corpus; `source` names the corpus."""

    id: str
    text: str
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return _columns(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Document:
        return cls(row["id"], row["text"], row.get("source", ""), row.get("metadata", {}))


@dataclass(frozen=True, slots=True)
class Pair:
    """One instruction-response pair.

    `question` and `answer` are as the synthesizer wrote them, options and rationale included
    (paper's wire format); `options` lists the options of a multiple-choice question, else empty;
    `rationale` says whether the answer reasons before it concludes; `checks` names those it has passed.
    """

    question: str
    answer: str
    options: tuple[str, ...] = ()
    rationale: bool = False
    checks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return _columns(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Pair:
        options, checks = tuple(row.get("options", ())), tuple(row.get("checks", ()))
        return cls(row["question"], row["answer"], options, bool(row.get("rationale", False)), checks)


@dataclass(frozen=True, slots=True)
class AugmentedText:
    """A text (a document, or the piece [start, end) of a long one) with the pairs written about it.

    `sample` numbers the times that the same text was given to the synthesizer; the first is 0, and not serialised.
    """

    document_id: str
    text: str
    pairs: tuple[Pair, ...] = ()
    start: int = 0
    end: int = -1
    source: str = ""
    sample: int = 0

    def to_json(self) -> dict[str, Any]:
        row = _columns(self) | {"pairs": [pair.to_json() for pair in self.pairs]}
        if not self.sample:
            del row["sample"]
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> AugmentedText:
        pairs = tuple(Pair.from_json(pair) for pair in row.get("pairs", ()))
        place = (row.get("start", 0), row.get("end", -1))
        return cls(row["document_id"], row["text"], pairs, *place, row.get("source", ""), row.get("sample", 0))


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
    """Characters [start, end) of a training text belong to class `kind`.

    `of` is the place of the origin for a `text`, the place of the pair (counted over the whole training text) for a
    `question` or an `answer`, and -1 else.  A `control` span spells one control token (of a chat template, say) and
    becomes that token's id; in any other span such a spelling is text.
    """

    start: int
    end: int
    kind: SpanClass
    of: int = -1


@dataclass(frozen=True, slots=True)
class Origin:
    """A raw text inside a training text: characters [start, end) of a document of the corpus `source`.

    `at` is the character of the training text at which it stands, -1 where it does not (a closed book).  `checks` has
    one string a pair written about it, in their order: the checks passed, joined by blanks.
    """

    document_id: str
    source: str = ""
    start: int = 0
    end: int = 0
    checks: tuple[str, ...] = ()
    at: int = -1


@dataclass(frozen=True, slots=True)
class TrainingText:
    """A document as the model will read it, with where each part came from.

    `template` names the styles drawn and `seed` the seed of their draws; both are empty for raw text.  `spans` cover
    the text without gap or overlap.  Serialised, spans are three columns, since there may be many: `ends`, `kinds` (a
    letter each, see SPAN_LETTERS) and `of`.
    """

    id: str
    text: str
    origins: tuple[Origin, ...] = ()
    template: str = ""
    seed: int | None = None
    spans: tuple[Span, ...] = ()

    @property
    def document_ids(self) -> tuple[str, ...]:
        """The raw documents inside, each once, in order."""
        return tuple(dict.fromkeys(origin.document_id for origin in self.origins))

    def to_json(self) -> dict[str, Any]:
        spans = {
            "ends": [span.end for span in self.spans],
            "kinds": "".join(SPAN_LETTERS[span.kind] for span in self.spans),
            "of": [span.of for span in self.spans],
        }
        origins = [_columns(origin) for origin in self.origins]
        return {
            "id": self.id,
            "text": self.text,
            "origins": origins,
            "template": self.template,
            "seed": self.seed,
            "spans": spans,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> TrainingText:
        origins = tuple(
            Origin(**{**origin, "checks": tuple(origin.get("checks", ()))}) for origin in row.get("origins", ())
        )
        columns = row.get("spans", {"ends": (), "kinds": "", "of": ()})
        starts = [0, *columns["ends"][:-1]]
        kinds = (_SPAN_CLASSES[letter] for letter in columns["kinds"])
        spans = tuple(map(Span, starts, columns["ends"], kinds, columns["of"]))
        return cls(row["id"], row["text"], origins, row.get("template", ""), row.get("seed"), spans)
