"""metrics.jsonl, the truth about a run: one JSON object a line, `kind` first.

    {"kind": "train", "iteration": 7, "consumed_samples": 28, "loss": 3.01, ..., "samples": {"domain": 3, "general": 1},
     "checksums": {"domain": 5214336710, ...}, "sources": {"domain": {"kind": "raw", "loss": 2.9, ...}, ...}}
    {"kind": "validation", "iteration": 10, "name": "held_out", "loss": 2.9, "bits_per_byte": 0.9, ...}
    {"kind": "skipped", "iteration": 8, "reason": "spike", ...}      a step without an update; the rest as for "train"
    {"kind": "parity", ...}
    {"kind": "checkpoint", "iteration": 10, "path": "iter_0000010", "seconds": 1.2, "written_seconds": 9.8}
    {"kind": "fell_back", "iteration": 10, "path": "iter_0000020", "reason": ..., "to": "iter_0000010"}
    {"kind": "stopped", "iteration": 12, "reason": "stop_file"}      or "sigterm"; the run goes on when started again

`seconds` of a checkpoint are those that training stood; `written_seconds` passed until it was the newest, with
async_save: its line may stand behind those of later steps.  `fell_back` names a checkpoint that was passed over.

`samples` and `checksums` are of all steps since the line before: what entered the model, counted there.  Each step
whose state is saved has a line, so that a resumed run's lines go on where the ones before end.

A resumed run first removes the lines after the iteration it resumes from: they will be written again.  A run that
starts anew where a file stands moves it aside, to metrics.before.jsonl.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from data_prep.blend import Blend

if TYPE_CHECKING:
    from megatron_ipt.mcore.model import Part
    from megatron_ipt.training.sinks import Sink

logger = logging.getLogger(__name__)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, an unfinished last one left out; none where there is no file."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().split(b"\n"):
        try:
            rows.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue
    return rows


class Metrics:
    """Appends to metrics.jsonl on the main rank and tells the console; other ranks do nothing."""

    def __init__(
        self, path: Path, *, is_main: bool, resumed_from: int, train_iters: int, sinks: Sequence[Sink] = ()
    ) -> None:
        """`sinks` get each line too."""
        self._train_iters, self._sinks = train_iters, sinks
        self._file = None
        if is_main:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not resumed_from:
                path.replace(path.with_suffix(".before.jsonl"))
            kept = [row for row in read_metrics(path) if row.get("iteration", 0) <= resumed_from]
            waiting = path.with_suffix(".partial")
            waiting.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in kept))
            waiting.replace(path)
            self._file = path.open("ab")

    def write(self, kind: str, iteration: int, **values: Any) -> None:
        """Add one line; a reader sees it when this returns."""
        if self._file is not None:
            row = {"kind": kind, "iteration": iteration, **values}
            self._file.write(orjson.dumps(row) + b"\n")
            self._file.flush()
            logger.info(_TELL[kind](row, self._train_iters))
            for sink in self._sinks:
                sink.write(row)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            for sink in self._sinks:
                sink.close()


class Drawn:
    """What each source gave to the model in the steps since the last line of metrics."""

    def __init__(self, blend: Blend) -> None:
        self._names = [source.name for source in blend.sources]
        self._clear()

    def _clear(self) -> None:
        self.steps = 0
        self._samples = dict.fromkeys(self._names, 0)
        self._checksums = dict.fromkeys(self._names, 0)

    def add(self, by_source: Sequence[Part]) -> None:
        """A step's parts, in the order of the blend's sources."""
        self.steps += 1
        for name, part in zip(self._names, by_source, strict=True):
            self._samples[name] += part.samples
            self._checksums[name] += part.checksum

    def take(self) -> dict[str, dict[str, int]]:
        """The columns of a line; the next one begins with nothing."""
        told = {"samples": self._samples, "checksums": self._checksums}
        self._clear()
        return told


def source_figures(
    blend: Blend, consumed_samples: int, by_source: Sequence[Part]
) -> dict[str, dict[str, str | float | int | None]]:
    """Each source in one step and so far: by name.

    A source without a token in the step has no loss.  So far, by the blend's schedule: samples, the tokens of their
    sequences, and epochs, the samples by those of one pass over the source.
    """
    drawn = blend.schedule.counts(consumed_samples)
    return {
        source.name: {
            "kind": source.kind,
            "loss": part.loss / part.tokens if part.tokens else None,
            "loss_tokens": part.tokens,
            "consumed_samples": samples,
            "consumed_tokens": samples * blend.seq_length,
            "epochs": samples / source.sequences,
        }
        for source, samples, part in zip(blend.sources, drawn, by_source, strict=True)
    }


def _train(row: dict[str, Any], train_iters: int) -> str:
    left = (train_iters - row["iteration"]) * row["step_seconds"]
    sources = "".join(f"\n    {_source(name, figures)}" for name, figures in row["sources"].items())
    return (
        f"iteration {row['iteration']:>6}/{train_iters}  loss {row['loss']:.4f}  grad norm {row['grad_norm']:.3f}  "
        f"lr {row['lr']:.2e}  {row['tokens_per_second']:,.0f} tokens/s  {left / 60:.1f} min left{sources}"
    )


def _source(name: str, figures: dict[str, Any]) -> str:
    loss = "no token in this step" if figures["loss"] is None else f"loss {figures['loss']:.4f}"
    return f"{name}: {loss}, {figures['consumed_tokens']:,} tokens and {figures['epochs']:.3f} epochs so far"


def _skipped(row: dict[str, Any], train_iters: int) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in row["skipped"].items() if count)
    return (
        f"iteration {row['iteration']:>6}/{train_iters}  no update ({row['reason']})  loss {row['loss']:.4f}  "
        f"grad norm {row['grad_norm']:.3f}; so far: {counts}"
    )


def _validation(row: dict[str, Any], _: int) -> str:
    return (
        f"iteration {row['iteration']:>6}  {row['name']}: loss {row['loss']:.4f}, {row['bits_per_byte']:.4f} bits/byte"
    )


def _parity(row: dict[str, Any], _: int) -> str:
    return (
        f"parity with transformers: |dloss| {row['dloss']:.1e}, max |dlogit| {row['max_dlogit']:.1e} "
        f"on {row['tokens']} tokens"
    )


def _shadow(row: dict[str, Any], _: int) -> str:
    return (
        f"iteration {row['iteration']:>6}  loss {row['loss']:.4f} with FP8, {row['full_loss']:.4f} without "
        f"({row['difference']:+.3%})"
    )


def _checkpoint(row: dict[str, Any], _: int) -> str:
    return f"iteration {row['iteration']:>6}  saved {row['path']} in {row['seconds']:.1f} s"


def _fell_back(row: dict[str, Any], _: int) -> str:
    return f"iteration {row['iteration']:>6}  {row['path']} is damaged: gone back to {row['to']}"


def _stopped(row: dict[str, Any], train_iters: int) -> str:
    return f"iteration {row['iteration']:>6}/{train_iters}  ends here ({row['reason']}); start again to go on"


_TELL = {
    "train": _train,
    "skipped": _skipped,
    "validation": _validation,
    "parity": _parity,
    "shadow": _shadow,
    "checkpoint": _checkpoint,
    "fell_back": _fell_back,
    "stopped": _stopped,
}
