"""ipt data: text in, indexed datasets out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from data_prep.collection.settings import CollectSettings
from data_prep.errors import UserError
from data_prep.settings import (
    CheckSettings,
    DecontaminateSettings,
    FetchSettings,
    IndexSettings,
    InstructionSettings,
    PairsReportSettings,
    RenderSettings,
    SynthesizeSettings,
)
from megatron_ipt.cli import datasets, steps, tables
from megatron_ipt.cli.options import settings_options

app = typer.Typer(help="Text -> documents -> pairs -> training text -> .bin/.idx.", no_args_is_help=True)

Out = Annotated[Path, typer.Argument(help="where to write")]
INPUTS: Final = "documents: JSONL(.gz, .zst), Parquet, folders, globs, Hugging Face datasets"


@app.command()
@settings_options(FetchSettings)
def fetch(out: Out, settings: FetchSettings) -> None:
    """Fetch a corpus (and a small model) by name, pinned and hash-checked; set held-out documents apart."""
    steps.fetch(settings, out)


@app.command()
def list_assets() -> None:
    """Corpora and models that `ipt data fetch` knows, with their licences."""
    from data_prep.fetch import CORPORA, MODELS

    rows = [("corpus", name, corpus.licence) for name, corpus in CORPORA.items()]
    rows += [("model", name, model.licence) for name, model in MODELS.items()]
    tables.show("assets", ("kind", "name", "licence"), rows)


@app.command()
@settings_options(CollectSettings)
def collect(
    inputs: Annotated[list[Path], typer.Argument(help="folders or files of task datasets: DATASET/shard/*.jsonl")],
    out: Annotated[Path, typer.Option(help="folder for tuning.jsonl, examples.jsonl, held_out.jsonl, summary.json")],
    settings: CollectSettings,
) -> None:
    """Turn task datasets (context, list of questions and answers) into tuning sequences of a synthesizer."""
    steps.collect(settings, inputs, out)


@app.command()
@settings_options(SynthesizeSettings)
def synthesize(
    inputs: Annotated[list[str], typer.Argument(help=INPUTS)],
    out: Annotated[Path, typer.Argument(help="chains to write, JSONL")],
    shard_index: Annotated[int, typer.Option(min=0, help="work off every NUM_SHARDS-th shard, from this one on")] = 0,
    num_shards: Annotated[int, typer.Option(min=1, help="processes that share the shards, as of a Slurm array")] = 1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="ask again about texts that failed")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="measure a sample, and tell what the run will take")] = False,
    plan_documents: Annotated[int, typer.Option(min=1, help="documents of the sample")] = 64,
    plan_rate: Annotated[
        float | None, typer.Option(min=0, help="completion tokens a second of an engine, where it is known")
    ] = None,
    *,
    settings: SynthesizeSettings,
) -> None:
    """Let a model write question-answer pairs about documents, M texts a chain."""
    if shard_index >= num_shards:
        raise UserError("--shard-index", f"{shard_index} of {num_shards} shards", "count them from 0")
    if plan:
        steps.plan_synthesis(settings, inputs, out, plan_documents, plan_rate)
    elif retry_failed:
        steps.retry_synthesis(settings, out)
    else:
        steps.synthesize(settings, inputs, settings.model, out, shard_index, num_shards)


@app.command()
@settings_options(CheckSettings)
def check(
    chains: Annotated[Path, typer.Argument(help="chains of `ipt data synthesize`, JSONL")],
    out: Annotated[Path, typer.Argument(help="checked chains to write, JSONL")],
    settings: CheckSettings,
) -> None:
    """Drop pairs that fail a check; count and keep every reason."""
    steps.check(settings, chains, out)


@app.command()
@settings_options(DecontaminateSettings)
def decontaminate(
    inputs: Annotated[list[str], typer.Argument(help=INPUTS)],
    out: Annotated[Path, typer.Argument(help="the documents that hold no evaluation task, JSONL")],
    settings: DecontaminateSettings,
) -> None:
    """Set documents apart that hold questions or answers of evaluation tasks, before anything is made of them."""
    steps.decontaminate(settings, inputs, out)


@app.command()
@settings_options(PairsReportSettings)
def report_pairs(
    chains: Annotated[Path, typer.Argument(help="chains, checked or not, JSONL")],
    out: Annotated[Path, typer.Argument(help="page to write, HTML")],
    settings: PairsReportSettings,
) -> None:
    """Show what pairs there are as one HTML page: amounts, kinds, task categories, beginnings, grounding, drops."""
    steps.report_pairs(settings, chains, out)


@app.command()
@settings_options(RenderSettings)
def render(
    chains: Annotated[Path, typer.Argument(help="checked chains, JSONL")],
    documents: Annotated[
        Path | None, typer.Argument(help="the corpus: OUT.documents.jsonl.zst of synthesize, or as JSONL it was")
    ] = None,
    out: Annotated[Path | None, typer.Argument(help="folder for augmented.jsonl and raw.jsonl")] = None,
    leftovers: Annotated[
        list[Path] | None, typer.Option(help="texts without pairs; default: CHAINS.leftover.jsonl, where it is")
    ] = None,
    preview: Annotated[
        int | None, typer.Option(min=1, help="show the first documents with their spans in colour [documents]")
    ] = None,
    preview_html: Annotated[Path | None, typer.Option(help="write that look as an HTML page (default: 10)")] = None,
    *,
    settings: RenderSettings,
) -> None:
    """Turn chains into training text; every document that is in no chain goes on as raw text.

    Texts of CHAINS.withheld.jsonl, where `ipt data check` wrote it, are left out altogether.

    With --preview or --preview-html it shows what the documents look like; without OUT it does nothing else.
    """
    if preview or preview_html:
        steps.preview(settings, chains, preview, preview_html)
    if documents is not None and out is not None:
        beside = steps.leftover_of(chains)
        steps.render(settings, chains, leftovers or [beside] * beside.exists(), documents, out)
    elif not (preview or preview_html):
        raise UserError("OUT", "where to write is not said", "give CHAINS DOCUMENTS OUT, or --preview 3 for a look")


@app.command()
@settings_options(InstructionSettings)
def render_instructions(
    inputs: Annotated[list[Path], typer.Argument(help="rows with a question and a response: JSONL, Parquet")],
    out: Annotated[Path, typer.Option(help="training text to write, JSONL")],
    settings: InstructionSettings,
) -> None:
    """Turn rows of general instructions into training text: "{question} {response}", or a chat template."""
    steps.render_instructions(settings, inputs, out)


@app.command()
@settings_options(IndexSettings)
def index(
    inputs: Annotated[list[Path], typer.Argument(help="training text, or any rows with a text, JSONL")],
    prefix: Annotated[Path, typer.Option(help="dataset to write: PREFIX.bin, PREFIX.idx, PREFIX.manifest.json")],
    settings: IndexSettings,
) -> None:
    """Tokenize text into a dataset that any Megatron reads; checked with megatron-core's own reader."""
    if settings.tokenizer is None:
        raise UserError("--tokenizer", "no tokenizer is named", "give its Hugging Face directory or its file")
    steps.index(settings, inputs, settings.tokenizer, prefix)


for _verb in datasets.VERBS:
    app.command()(_verb)
