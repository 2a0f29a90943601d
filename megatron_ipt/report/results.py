"""Results as sections of the page: training, evaluation, and what each step cost.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from data_prep.errors import UserError
from megatron_ipt.evaluate.bits_per_byte import Score, difference
from megatron_ipt.report.curves import plots, thin
from megatron_ipt.report.data import Evaluation, ParityFigures, StepCost, Training, TrainPoint
from megatron_ipt.report.domain import domain_plots, source_table
from megatron_ipt.report.parts import Section
from megatron_ipt.report.tables import (
    Cell,
    Table,
    count,
    decimal,
    general,
    memory,
    percent,
    seconds,
    share_of,
    signed,
    table,
    words,
)

# Steps of `ipt run` in their order; the report's own cost is of the time before, so it is not shown.
STEP_ORDER = (
    "fetch",
    "synthesize",
    "check",
    "render",
    "index",
    "blend",
    "baseline",
    "train",
    "export",
    "evaluate",
)

SELF_MADE = "self-made: says nothing about quality"
# A change smaller than this many standard errors is not called one.
CLEAR = 2.0
# Rows of the table; the CSV of the loss has them all.
MOST_VALIDATIONS = 20


@dataclass(frozen=True, slots=True)
class Comparison:
    """One set before and after; `change` and its standard error only where both scored the same documents."""

    name: str
    self_made: bool
    before: Score | None
    after: Score | None
    change: float | None
    error: float | None

    @property
    def reading(self) -> str:
        """What the change shows, in words."""
        if self.before is None or self.after is None:
            return "scored once only"
        if self.change is None or self.error is None:
            return "not comparable: scored on different documents"
        if not self.error:
            return "one document or none changed: no standard error"
        size = abs(self.change) / self.error
        if size < CLEAR:
            return f"within {CLEAR:g} standard errors: no change shown"
        return f"{'lower' if self.change < 0 else 'higher'} by {size:.1f} standard errors"


def training(found: Training, smoothing: float) -> Section:
    sentences = []
    if found.points:
        first, last = found.points[0], found.points[-1]
        sentences.append(
            f"{last.iteration:,} steps over {last.consumed_tokens:,} tokens: training loss {first.loss:.4f} at step "
            f"{first.iteration:,}, {last.loss:.4f} at step {last.iteration:,} (nats/token)."
        )
    else:
        sentences.append("No step was logged.")
    tables = [_run_facts(found), *source_table(found, smoothing), *_validation(found)]
    drawn = (*plots(found, smoothing), *domain_plots(found, smoothing))
    return Section("training", "Training", tuple(sentences), drawn, tuple(tables))


def _validation(found: Training) -> Iterator[Table]:
    """The validations, where there were any; of many the first and some evenly spaced ones up to the last."""
    if found.validation:
        kept = sorted({0, *thin(len(found.validation), MOST_VALIDATIONS)})
        columns = "set, step:iteration, loss, bits per byte, tokens"
        rows = [
            (
                words(point.name),
                count(point.iteration),
                decimal(point.loss),
                decimal(point.bits_per_byte),
                count(point.tokens),
            )
            for point in (found.validation[place] for place in kept)
        ]
        some = "" if len(kept) == len(found.validation) else f" ({len(kept)} of {len(found.validation):,})"
        yield table("validation", f"Validation while training{some}", columns, rows)


def _run_facts(found: Training) -> Table:
    rows = [*_layout(found.recipe), *_speed(found.points)]
    if found.checkpoint_seconds:
        rows.append(_fact("checkpoints", count(len(found.checkpoint_seconds))))
        rows.append(_fact("checkpoint, median", seconds(median(found.checkpoint_seconds))))
        rows.append(_fact("checkpoints, together", seconds(sum(found.checkpoint_seconds))))
    if found.parity:
        rows += _parity(found.parity)
    return table("run-facts", "Facts of the run", "what, value, note", rows, facts=True)


def _layout(recipe: Mapping[str, Any]) -> list[tuple[Cell, Cell, Cell]]:
    """Layout and batch as the recipe of the last checkpoint has them."""
    train = recipe.get("train")
    if not train:
        return []
    tensor, pipeline = train["tensor_model_parallel_size"], train["pipeline_model_parallel_size"]
    chunks = train.get("virtual_pipeline_model_parallel_size")
    parts = [f"tensor {tensor}", f"pipeline {pipeline}" + (f" ({chunks} chunks a rank)" if chunks else "")]
    if train.get("context_parallel_size", 1) > 1:
        parts.append(f"context {train['context_parallel_size']}")
    if train["sequence_parallel"]:
        parts.append("sequence parallel")
    processes = train["nproc_per_node"]
    batch = f"{train['global_batch_size']:,} sequences of {train['seq_length']:,} tokens"
    ramp = f"; by samples: {train['step_batch_size_schedule']}" if train.get("step_batch_size_schedule") else ""
    return [
        _fact("layout", words(", ".join(parts)), f"processes a machine: {processes}"),
        _fact("batch", words(batch), f"micro-batch: {train['micro_batch_size']}{ramp}"),
        _fact("number format", words("bfloat16, fp32 masters" if train["bf16"] else "float32")),
        _fact("peak learning rate", general(train["lr"]), f"{train['lr_decay_style']} to {train['min_lr']:g}"),
        _fact("steps planned", count(train["train_iters"])),
    ]


def _speed(points: tuple[TrainPoint, ...]) -> list[tuple[Cell, Cell, Cell]]:
    if not points:
        return []
    last = points[-1]
    time = sum(point.step_seconds for point in points)
    waited = sum(point.data_seconds for point in points) / time if time else None
    peak = max(point.memory_bytes for point in points)
    return [
        _fact("steps done", count(last.iteration), f"{len(points):,} logged"),
        _fact("sequences trained", count(last.consumed_samples)),
        _fact("tokens trained", count(last.consumed_tokens)),
        _fact("tokens a second, median", decimal(median(point.tokens_per_second for point in points), 1), "all ranks"),
        _fact("seconds a step, median", seconds(median(point.step_seconds for point in points))),
        _fact("share of time waiting for data", percent(waited), "of the logged steps"),
        _fact("peak memory of the fullest rank", memory(peak)),
    ]


def _parity(parity: ParityFigures) -> list[tuple[Cell, Cell, Cell]]:
    return [
        _fact("parity gate", words("passed" if parity.passed else "failed"), f"on {parity.tokens:,} tokens"),
        _fact("parity: difference of loss", general(parity.dloss), "nats/token"),
        _fact("parity: largest difference of a logit", general(parity.max_dlogit)),
        _fact("parity: mean KL divergence", general(parity.kl), "nats"),
    ]


def _fact(name: str, value: Cell, note: str = "") -> tuple[Cell, Cell, Cell]:
    return words(name), value, words(note)


def compare(found: Evaluation) -> list[Comparison]:
    """Each set with its change; held-out sets first, self-made ones last."""
    before = {score.name: score for score in found.before}
    after = {score.name: score for score in found.after}
    rows = [_comparison(name, before.get(name), after.get(name)) for name in {**before, **after}]
    return sorted(rows, key=lambda row: row.self_made)


def _comparison(name: str, before: Score | None, after: Score | None) -> Comparison:
    scores = [score for score in (before, after) if score]
    change: float | None = None
    error: float | None = None
    if before and after:
        try:
            change, error = difference(before, after)
        except UserError:  # other documents: shown as not comparable
            change, error = None, None
    return Comparison(name, any(score.self_made for score in scores), before, after, change, error)


def evaluation(found: Evaluation) -> Section:
    settings = found.settings_after or found.settings_before
    sentences = [
        "Bits per byte of whole documents, lower is better; standard error by a paired bootstrap over documents.",
        f"Windows of {settings['max_length']:,} tokens in {settings['dtype']}, "
        f"prefix token {settings['prefix_token']!r}.",
    ]
    if found.before and found.after and found.settings_before != found.settings_after:
        sentences.append("Caution: the two models were scored under different settings, which alone moves the figures.")
    columns = "set, documents, tokens, before, after, change, standard error, reading, note"
    return Section(
        "evaluation",
        "Evaluation",
        tuple(sentences),
        tables=(table("bits-per-byte", "Bits per byte", columns, [_evaluation_row(row) for row in compare(found)]),),
    )


def _evaluation_row(row: Comparison) -> tuple[Cell, ...]:
    score = row.after or row.before
    return (
        words(row.name),
        count(len(score.bits) if score else None),
        count(score.tokens if score else None),
        decimal(row.before.bits_per_byte if row.before else None),
        decimal(row.after.bits_per_byte if row.after else None),
        signed(row.change),
        decimal(row.error),
        words(row.reading),
        words(SELF_MADE if row.self_made else ""),
    )


def costs(steps: tuple[StepCost, ...]) -> Section | None:
    """Steps in the order of the flow, unknown ones after them."""
    known = {name: place for place, name in enumerate(STEP_ORDER)}
    shown = sorted((step for step in steps if step.name != "report"), key=lambda step: known.get(step.name, len(known)))
    if not shown:
        return None
    total = sum(step.seconds for step in shown)
    peaks = [step.peak_memory_bytes for step in shown if step.peak_memory_bytes is not None]
    rows = [
        (
            words(step.name),
            seconds(step.seconds),
            percent(share_of(step.seconds, total)),
            memory(step.peak_memory_bytes),
        )
        for step in shown
    ]
    sentence = f"All steps took {seconds(total).text}" + (f", {memory(max(peaks)).text} at most." if peaks else ".")
    note = "Each step when it last ran; memory is of the step's process and its children together."
    columns = "step, time:seconds, share, peak memory:peak_memory_bytes"
    return Section(
        "costs", "Time and memory", (sentence, note), tables=(table("step-costs", "By step", columns, rows),)
    )
