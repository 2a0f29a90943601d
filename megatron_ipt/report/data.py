"""The files of a run -> typed figures; a file that is not there is named in `missing`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from data_prep.blend.plan import PlanRow, PlanTable
from data_prep.errors import UserError
from data_prep.readers import beside, read_jsonl
from data_prep.records import AugmentedText, Chain
from megatron_ipt.evaluate.bits_per_byte import Score, read_scores
from megatron_ipt.paths import RunPaths
from megatron_ipt.training.metrics import read_metrics


@dataclass(frozen=True, slots=True)
class RawText:
    """What `fetch` wrote: counts of documents; `characters` of all that were kept."""

    corpus: str
    licence: str
    documents: int
    train: int
    held_out: int
    characters: int
    dropped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Synthesis:
    """What `synthesize` wrote: counts; tokens of all texts, tokens_per_second of the last call."""

    documents: int
    texts: int
    texts_with_pairs: int
    chains: int
    pairs: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    tokens_per_second: float
    leftover: Mapping[str, int]
    rejected: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Checked:
    """What `check` wrote: counts of pairs; dropped by check and reason."""

    pairs: int
    kept: int
    dropped: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class SourcePoint:
    """One source at a logged step: its loss in that step (None without a token of it), the rest is since the start."""

    name: str
    kind: str
    loss: float | None
    consumed_samples: int
    consumed_tokens: int
    epochs: float


@dataclass(frozen=True, slots=True)
class TrainPoint:
    """One logged step.  `loss` in nats a token; `memory_bytes` is the peak so far of the fullest rank.

    `sources` is empty in runs of before these figures were kept.
    """

    iteration: int
    consumed_samples: int
    consumed_tokens: int
    loss: float
    lr: float
    grad_norm: float | None
    step_seconds: float
    data_seconds: float
    tokens_per_second: float
    memory_bytes: int
    sources: tuple[SourcePoint, ...]


@dataclass(frozen=True, slots=True)
class ValidationPoint:
    """One validation: nats a token and bits a byte of held-out tokens."""

    iteration: int
    name: str
    loss: float
    bits_per_byte: float
    tokens: int


@dataclass(frozen=True, slots=True)
class ParityFigures:
    """The gate before step 1: how far our logits are from the reference's."""

    tokens: int
    dloss: float
    max_dlogit: float
    kl: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Training:
    """metrics.jsonl by kind, and the recipe of the last checkpoint (empty where there is none)."""

    points: tuple[TrainPoint, ...]
    validation: tuple[ValidationPoint, ...]
    parity: ParityFigures | None
    checkpoint_seconds: tuple[float, ...]
    recipe: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores before and after training, each with its settings; either may be missing."""

    before: tuple[Score, ...]
    after: tuple[Score, ...]
    settings_before: Mapping[str, Any]
    settings_after: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one step of `ipt run` took when it last ran."""

    name: str
    seconds: float
    peak_memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class RunData:
    """All that the page shows.  `written` is the time of the newest file read (UTC)."""

    name: str
    written: datetime | None
    raw: RawText | None
    synthesis: Synthesis | None
    checked: Checked | None
    examples: tuple[AugmentedText, ...] | None
    plan: PlanTable | None
    training: Training | None
    evaluation: Evaluation | None
    steps: tuple[StepCost, ...] | None
    missing: tuple[tuple[str, str], ...]


def load_run(paths: RunPaths, name: str, documents: int) -> RunData:
    """Read what is there; `documents` texts are taken as examples.  UserError names a damaged file."""
    reader = _Reader(paths.root)
    before, after = paths.evaluation / "before.json", paths.evaluation / "after.json"
    return RunData(
        name=name,
        raw=reader.read("Raw text", paths.documents.with_name("summary.json"), lambda path: _pick(RawText, path)),
        synthesis=reader.read("Pairs", beside(paths.chains, "summary.json"), lambda path: _pick(Synthesis, path)),
        checked=reader.read("Checks", beside(paths.checked, "summary.json"), _checked),
        examples=reader.read("Documents with their pairs", paths.checked, lambda path: _examples(path, documents)),
        plan=reader.read("Blend", paths.blend.with_name("plan.json"), _plan),
        training=reader.read("Training", paths.metrics, lambda path: _training(path, paths.checkpoints)),
        evaluation=reader.read("Evaluation", after if after.exists() else before, lambda _: _evaluation(before, after)),
        steps=reader.read("Time and memory", paths.root / ".steps", _steps),
        written=reader.newest,
        missing=tuple(reader.missing),
    )


class _Reader:
    """Reads each file that is there, remembers the newest's time, and names those that are not."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.newest: datetime | None = None
        self.missing: list[tuple[str, str]] = []

    def read[T](self, section: str, path: Path, parse: Callable[[Path], T]) -> T | None:
        if not path.exists():
            self.missing.append((section, path.relative_to(self.root).as_posix()))
            return None
        if path.is_file():  # a folder changes whenever a step ends, this one's too
            time = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            self.newest = max(self.newest or time, time)
        try:
            return parse(path)
        except KeyError as error:
            raise UserError(path, f"the key {error} is missing", "run the step that writes it again") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(path, f"not what its step writes ({error})", "run that step again") from error


def _json(path: Path) -> dict[str, Any]:
    row: dict[str, Any] = orjson.loads(path.read_bytes())
    return row


def _make[T](kind: type[T], row: Mapping[str, Any]) -> T:
    """A record of the row's keys that it has fields for; KeyError names a field that is missing."""
    return kind(**{field.name: row[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def _pick[T](kind: type[T], path: Path) -> T:
    return _make(kind, _json(path))


def _checked(path: Path) -> Checked:
    row = _json(path)
    return Checked(row["in"], row["kept"], row["dropped"])


def _examples(path: Path, documents: int) -> tuple[AugmentedText, ...]:
    """The first text with pairs of each of the first documents in the file."""
    found: dict[str, AugmentedText] = {}
    for row in read_jsonl(path) if documents else ():
        for text in Chain.from_json(row).texts:
            if text.pairs:
                found.setdefault(text.document_id, text)
        if len(found) >= documents:
            break
    return tuple(found.values())[:documents]


def _plan(path: Path) -> PlanTable:
    row = _json(path)
    rows = tuple(PlanRow(**{**source, "flags": tuple(source["flags"])}) for source in row["rows"])
    notes = tuple(row.get("notes", ()))
    return PlanTable(row["blend_hash"], row["seq_length"], row["train_samples"], rows, notes=notes)


def _training(path: Path, checkpoints: Path) -> Training:
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in read_metrics(path):
        by_kind.setdefault(row["kind"], []).append(row)
    parity = by_kind.get("parity")
    cards = sorted(checkpoints.glob("iter_*/run_card.json"))
    return Training(
        points=tuple(_train_point(row) for row in by_kind.get("train", ())),
        validation=tuple(_make(ValidationPoint, row) for row in by_kind.get("validation", ())),
        parity=_make(ParityFigures, parity[-1]) if parity else None,
        checkpoint_seconds=tuple(row["seconds"] for row in by_kind.get("checkpoint", ())),
        recipe=_json(cards[-1])["recipe"] if cards else {},
    )


def _train_point(row: Mapping[str, Any]) -> TrainPoint:
    sources = row.get("sources", {}).items()
    return _make(
        TrainPoint, {**row, "sources": tuple(_make(SourcePoint, {"name": name, **found}) for name, found in sources)}
    )


def _evaluation(before: Path, after: Path) -> Evaluation:
    def scores(path: Path) -> tuple[Score, ...]:
        return tuple(read_scores(path)) if path.exists() else ()

    def settings(path: Path) -> dict[str, Any]:
        return _json(path)["settings"] if path.exists() else {}

    return Evaluation(scores(before), scores(after), settings(before), settings(after))


def _steps(folder: Path) -> tuple[StepCost, ...]:
    return tuple(_pick(StepCost, path) for path in sorted(folder.glob("*.json")))
