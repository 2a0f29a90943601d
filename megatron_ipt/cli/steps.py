"""The steps of a run as functions of settings and paths: what the verbs and `ipt run` both call.

Each loads its room when it is called, shows progress, and prints what it found.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.collection.settings import CollectSettings
from data_prep.settings import (
    BlendSettings,
    CheckSettings,
    DecontaminateSettings,
    FetchSettings,
    IndexSettings,
    InstructionSettings,
    PairsReportSettings,
    RenderSettings,
    SynthesizeSettings,
)
from megatron_ipt.cli import tables
from megatron_ipt.recipe import EvaluateSettings


def fetch(settings: FetchSettings, out: Path) -> None:
    from data_prep.fetch import fetch as run

    summary = run(settings, out)
    tables.show_counts(f"{summary['corpus']} ({summary['licence']})", summary)


def collect(settings: CollectSettings, inputs: Sequence[Path], out: Path) -> None:
    from data_prep.collection.collect import collect as run

    found = run(settings, inputs, out)
    tables.show_counts("collection", {name: count for name, count in found.items() if name != "datasets"})


def synthesize(
    settings: SynthesizeSettings,
    inputs: Sequence[Path | str],
    model: Path | None,
    out: Path,
    shard_index: int = 0,
    num_shards: int = 1,
    replace: bool = False,
) -> None:
    from data_prep.synthesis import progress_bar
    from data_prep.synthesis import synthesize as run

    with progress_bar(tables.console()) as progress:
        summary = run(settings, inputs, model, out, progress, None, shard_index, num_shards, replace)
    if summary is None:
        tables.console().print(f"these shards are done; {out} is written when all are")
    else:
        _show_synthesis(summary)


def retry_synthesis(settings: SynthesizeSettings, out: Path) -> None:
    from data_prep.synthesis import progress_bar, retry_failed

    with progress_bar(tables.console()) as progress:
        summary = retry_failed(settings, settings.model, out, progress)
    _show_synthesis(summary)


def _show_synthesis(summary: Mapping[str, Any]) -> None:
    left_out = ("engine", "made_of")
    tables.show_counts("synthesis", {name: value for name, value in summary.items() if name not in left_out})


def plan_synthesis(
    settings: SynthesizeSettings, inputs: Sequence[Path | str], out: Path, sample: int, rate: float | None
) -> None:
    from data_prep.synthesis.estimate import estimate

    found = estimate(settings, inputs, settings.model, out, sample=sample, rate=rate)
    title = f"{found.rows:,} rows, {found.documents:,} documents to synthesize, by {found.sampled} of them"
    rows: list[tuple[Any, ...]] = [(f"dropped: {reason}", count, "", "") for reason, count in found.dropped.items()]
    rows += [(name.replace("_", " "), *map(round, figures)) for name, figures in found.figures.items()]
    rows.append(("hours of one engine", found.hours, "", ""))
    if found.gpu_hours is not None:
        rows.append(("GPU-hours", found.gpu_hours, "", ""))
    tables.show(title, ("", "expected", "95 %: from", "to"), rows)
    source = "as given" if rate else "as the sample ran, which leaves a large engine half idle: an upper bound of time"
    tables.console().print(f"by {found.rate:,.0f} completion tokens a second of an engine, {source}")


def check(settings: CheckSettings, chains: Path, out: Path) -> None:
    from data_prep.checks import check as run

    summary = run(settings, chains, out)
    rows = [(name, reason, count) for name, reasons in summary["dropped"].items() for reason, count in reasons.items()]
    tables.show(f"pairs: {summary['in']} in, {summary['kept']} kept", ("check", "reason", "dropped"), rows)
    if summary["withheld_texts"]:
        told = f"{summary['withheld_texts']:,} texts ({summary['withheld_characters']:,} characters)"
        tables.console().print(f"withheld, as they hold evaluation tasks: {told}, in {withheld_of(out)}")


def decontaminate(settings: DecontaminateSettings, inputs: Sequence[str], out: Path) -> None:
    from data_prep.checks.corpus import decontaminate as run

    tables.show_counts("documents", run(settings, inputs, out))


def report_pairs(settings: PairsReportSettings, chains: Path, out: Path) -> None:
    from data_prep.pairs_report.naming import open_namer
    from data_prep.synthesis.wire import load_wire
    from megatron_ipt.report import pairs
    from megatron_ipt.report.model_categories import agreement_of

    namer = open_namer(settings)
    encode = load_wire(settings.tokenizer).encode if settings.tokenizer else None
    model = pairs(chains, out, settings, encode, namer)
    if model is not None:
        counts = {"asked": len(model.pairs), "named": model.named, "unreadable": model.unreadable.total()}
        tables.show_counts("categories by a model", {**counts, "failed": model.failed.total()})
        tables.console().print(f"called as by the rules: {agreement_of(model)}")
    tables.console().print(f"wrote {out}")


def render(settings: RenderSettings, chains: Path, leftovers: Sequence[Path], documents: Path, out: Path) -> None:
    from data_prep.templates.render import render as run

    withheld = [path for path in (withheld_of(chains),) if path.exists()]
    tables.show_counts("training text", run(settings, chains, leftovers, documents, out, withheld))


def preview(settings: RenderSettings, chains: Path, count: int | None, html: Path | None) -> None:
    """Show documents in the terminal, as a page, or both."""
    from data_prep.templates.preview import documents, show
    from data_prep.templates.preview_page import write_page

    texts = documents(settings, chains, count or 10)
    if count:
        show(texts, tables.console())
    if html:
        write_page(texts, html)
        tables.console().print(f"wrote {html}")


def render_instructions(settings: InstructionSettings, inputs: Sequence[Path], out: Path) -> None:
    from data_prep.templates.instructions import render_instructions as run

    tables.show_counts("instructions", run(settings, inputs, out))


def leftover_of(chains: Path) -> Path:
    """The file of texts without pairs that stands beside a chains file."""
    return chains.with_name(chains.name + ".leftover.jsonl")


def withheld_of(chains: Path) -> Path:
    """The file of texts not to be trained on that stands beside a file of checked chains."""
    return chains.with_name(chains.name + ".withheld.jsonl")


def index(settings: IndexSettings, inputs: Sequence[Path], tokenizer: Path, prefix: Path) -> None:
    from rich.progress import Progress

    from data_prep.indexing import index as run

    with Progress(console=tables.console()) as bar:
        task = bar.add_task(f"index {prefix.name}", total=None)
        manifest = run(settings, inputs, tokenizer, prefix, lambda count: bar.advance(task, count))
    counts = {"documents": manifest.documents, "tokens": manifest.tokens, "bytes of text": manifest.text_bytes}
    if manifest.lossy_documents:
        counts |= {"documents with lost characters": manifest.lossy_documents}
        counts |= {"characters without a token": manifest.lost_characters}
    tables.show_counts(f"{prefix.name}, encoded by {manifest.encoder}", {**counts, "dropped": manifest.dropped})
    if importlib.util.find_spec("megatron") is None:
        tables.console().print("megatron-core is not installed: checked with our own reader only")
        return
    from megatron_ipt.mcore.indexed_dataset import verify_with_megatron

    found = verify_with_megatron(prefix)
    told = f"{found['documents']} documents, {found['tokens']} tokens, {found['dtype']}"
    if found["compared"] < found["documents"]:
        told += f"; the tokens of {found['compared']} drawn ones compared"
    tables.console().print(f"megatron-core's reader agrees: {told}")


def plan(settings: BlendSettings, out: Path, base: Path, tokenizer: Path | None = None) -> None:
    from data_prep.blend import plan as run
    from megatron_ipt.cli.blend_tables import show_plan

    show_plan(run(settings, out, base, tokenizer))


def export(
    checkpoint: Path, out: Path, source: Path | None, dtype: str | None = None, tokenizer: Path | None = None
) -> None:
    from megatron_ipt.convert.export_hf import export_hf

    changed = export_hf(checkpoint, out, source, dtype, tokenizer)
    tables.console().print(f"wrote {out}")
    for name, (before, after) in changed.items():
        tables.console().print(f"config.json: {name} {before} -> {after}")


def evaluate(
    settings: EvaluateSettings, model: Path, texts: Mapping[str, Path], out: Path, self_made: Sequence[str] = ()
) -> None:
    from megatron_ipt.evaluate.bits_per_byte import TextSet
    from megatron_ipt.evaluate.bits_per_byte import evaluate as run

    sets = [TextSet(name, path, name in self_made) for name, path in texts.items()]
    rows = [
        (score.name, len(score.bits), score.tokens, score.bits_per_byte, "self-made" if score.self_made else "")
        for score in run(settings, model, sets, out)
    ]
    tables.show(f"{model}", ("set", "documents", "tokens", "bits per byte", "note"), rows)


def compare(before: Path, after: Path) -> None:
    """Print how each set's bits per byte changed between two `ipt evaluate` files."""
    from megatron_ipt.evaluate.bits_per_byte import difference, read_scores

    rows = []
    for old, new in zip(read_scores(before), read_scores(after), strict=True):
        change, error = difference(old, new)
        note = "self-made: says nothing about quality" if old.self_made else ""
        rows.append((old.name, old.bits_per_byte, new.bits_per_byte, f"{change:+.4f} ± {error:.4f}", note))
    tables.show("bits per byte", ("set", "before", "after", "change ± standard error", "note"), rows)
