"""ipt data inspect, verify, trace, merge: a look into indexed datasets."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.markup import escape
from rich.panel import Panel
from rich.progress import DownloadColumn, Progress, TimeElapsedColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from data_prep.errors import UserError
from data_prep.terminal import printable
from megatron_ipt.cli import tables

if TYPE_CHECKING:
    from data_prep.indexing.inspect import Inspection, LengthBin, Part, Sample
    from data_prep.indexing.trace import Trace, TracedToken

# Of each class of tokens.
COLOURS = {"text": "", "question": "cyan", "answer": "green", "template": "dim", "control": "magenta"}
_BAR = 40
_SOURCES_SHOWN = 20

Prefix = Annotated[Path, typer.Argument(help="the dataset: PREFIX of PREFIX.bin, PREFIX.idx, PREFIX.manifest.json")]
Tokenizer = Annotated[
    Path | None, typer.Option(help="directory of the tokenizer it was written with, to show text instead of ids")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object for machines")]


def inspect(
    prefix: Prefix,
    tokenizer: Tokenizer = None,
    samples: Annotated[int, typer.Option(min=0, help=r"documents to show \[documents]")] = 3,
    sample_tokens: Annotated[int, typer.Option(min=1, help=r"of each at most so much \[tokens]")] = 400,
    seed: Annotated[int, typer.Option(help="seed of the choice of samples")] = 0,
    json: Json = False,
) -> None:
    """Show what is in a dataset: counts, classes, sources, lengths, and some documents in colour."""
    from data_prep.indexing.inspect import inspect as run

    found = run(prefix, samples, seed, tokenizer, sample_tokens)
    if json:
        _put_json(found)
        return
    _show_facts(found)
    total = max(1, found.tokens)
    rows = [(kind, count, f"{count / total:.1%}") for kind, count in found.tokens_by_class.items()]
    tables.show("classes", ("class", "tokens", "share"), rows)
    _show_sources(found.documents_by_source, found.documents)
    _show_lengths(found.histogram, found.percentiles)
    for sample in found.samples:
        _show_sample(sample)


def verify(
    prefixes: Annotated[list[Path], typer.Argument(help="datasets: PREFIX of PREFIX.manifest.json each")],
    jobs: Annotated[int, typer.Option(min=1, help=r"blocks read side by side \[threads]")] = 1,
    sample: Annotated[
        int | None,
        typer.Option(min=1, help=r"only so many drawn blocks of 64 MiB, and header and sizes \[blocks]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the sample")] = 0,
) -> None:
    """Hold datasets against their hashes and their files against each other; every fault is told in a line."""
    faults: list[UserError] = []
    rows = []
    for prefix in prefixes:
        start = time.perf_counter()
        try:
            facts, found = _verify(prefix, jobs, sample, seed)
        except UserError as error:
            found = [error]
        faults += found
        if not found:
            rows.append((_safe(prefix), *facts, f"{time.perf_counter() - start:.1f}"))
    if rows:
        tables.show("as written", ("dataset", "documents", "tokens", "checked", "seconds"), rows)
    for fault in faults[:-1]:
        typer.echo(f"error: {printable(str(fault))}", err=True)
    if faults:
        raise faults[-1]


def _verify(prefix: Path, jobs: int, sample: int | None, seed: int) -> tuple[tuple[int, int, str], list[UserError]]:
    """(documents, tokens, what was checked) of a dataset, and its faults; with a sample, the first is raised."""
    from data_prep.indexing.verify import find_faults, verify_sample, work_bytes
    from data_prep.manifest import read_manifest

    manifest = read_manifest(prefix)
    if sample:
        blocks = verify_sample(prefix, blocks=sample, seed=seed, jobs=jobs)
        return (manifest.documents, manifest.tokens, f"header, sizes and {len(blocks)} blocks"), []
    columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    console = tables.console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"verify {escape(prefix.name)}", total=work_bytes(manifest))
        faults = find_faults(prefix, jobs, partial(bar.advance, task))
    return (manifest.documents, manifest.tokens, "everything"), faults


def trace(
    prefix: Prefix,
    token: Annotated[int | None, typer.Option(help="a token, counted from 0 from the start of the .bin")] = None,
    document: Annotated[int | None, typer.Option(help="or a document, counted from 0")] = None,
    tokenizer: Tokenizer = None,
    json: Json = False,
) -> None:
    """Lead a token back: its class and pair, the checks passed, the training document, and the raw characters."""
    from data_prep.indexing.trace import trace as run

    found = run(prefix, token, document, tokenizer)
    if json:
        _put_json(found)
        return
    facts = [
        ("training document", f"{found.id} (document {found.document:,} of {found.prefix})"),
        ("from file", found.source_file),
        ("styles", found.template or "none: raw text"),
        ("seed", "none" if found.seed is None else found.seed),
        ("tokens", f"{found.tokens:,}, from token {found.first_token:,} on"),
        ("classes", ", ".join(f"{kind} {count:,}" for kind, count in found.tokens_by_class.items())),
    ]
    if found.token:
        facts = _token_facts(found, found.token) + facts
    _facts(f"token {token:,}" if token is not None else f"document {found.document:,}", facts)
    _show_pairs(found)
    rows = [
        (number, _safe(each.document_id), _safe(each.source), f"{each.start:,} to {each.end:,}")
        for number, each in enumerate(found.origins)
    ]
    tables.show("raw documents", ("origin", "document", "source", "characters"), rows)


def merge(
    out: Annotated[Path, typer.Argument(help="the dataset to write: PREFIX of PREFIX.bin, PREFIX.idx, ...")],
    prefixes: Annotated[list[Path], typer.Argument(help="datasets of one tokenizer and policy, in their order")],
) -> None:
    """Put datasets together as if they had been indexed at once; each is verified first."""
    from data_prep.indexing.merge import merge as run

    manifest = run(prefixes, out)
    counts = {"documents": manifest.documents, "tokens": manifest.tokens, "bytes of text": manifest.text_bytes}
    tables.show_counts(out.name, {**counts, "dropped": manifest.dropped})


VERBS = (inspect, verify, trace, merge)


def _put_json(found: Any) -> None:
    """Straight to stdout: no table's width, no markup."""
    typer.echo(orjson.dumps(asdict(found), option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode())


def _safe(value: object) -> str:
    """For a cell of a table: text of a document, or a name, is no markup."""
    return escape(printable(str(value)))


def _facts(title: str, facts: list[tuple[str, Any]]) -> None:
    tables.show(title, ("", "what"), [(name, _safe(value)) for name, value in facts])


def _show_facts(found: Inspection) -> None:
    tokenizer = found.tokenizer
    begins = f"begins with BOS {tokenizer['bos_id']}" if tokenizer["prepend_bos"] else "no BOS"
    ends = f"ends with EOD {tokenizer['eod_id']}" if tokenizer["append_eod"] else "no EOD"
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in found.dropped.items() if count)
    facts = [
        ("documents", f"{found.documents:,}"),
        ("dropped", dropped or "none"),
        ("tokens", f"{found.tokens:,} of {found.dtype}"),
        ("bytes of text", f"{found.text_bytes:,} ({found.bytes_per_token:.3f} a token)"),
        ("tokenizer", f"{tokenizer['fingerprint'][:12]}, {tokenizer['vocab_size']:,} ids"),
        ("each document", f"{begins}, {ends}"),
        ("encoder", found.encoder or "not recorded"),
        ("data hash", found.data_hash),
    ]
    _facts(found.prefix, facts)


def _show_sources(sources: dict[str, int], documents: int) -> None:
    shown = list(sources.items())[:_SOURCES_SHOWN]
    rows = [(_safe(name or "(none)"), count, f"{count / max(1, documents):.1%}") for name, count in shown]
    rest = list(sources.values())[_SOURCES_SHOWN:]
    if rest:
        rows.append((f"{len(rest):,} more", sum(rest), ""))
    if rows:
        tables.show("sources", ("source", "documents", "share"), rows)


def _show_lengths(histogram: list[LengthBin], percentiles: dict[int, int]) -> None:
    table = Table(title="lengths", title_justify="left", title_style="bold")
    for column in ("tokens", "documents", "share of tokens"):
        table.add_column(column, justify="right")
    table.add_column("documents", min_width=_BAR)
    most = max((each.documents for each in histogram), default=1)
    tokens = max(1, sum(each.tokens for each in histogram))
    for each in histogram:
        bar = "█" * round(_BAR * each.documents / most) or ("▏" if each.documents else "")
        share = f"{each.tokens / tokens:.1%}"
        table.add_row(f"{each.low:,} to {each.high - 1:,}", f"{each.documents:,}", share, Text(bar, "cyan"))
    tables.console().print(table)
    names = {0: "shortest", 50: "median", 100: "longest"}
    told = [f"{names.get(percent, f'{percent} %')} {length:,}" for percent, length in percentiles.items()]
    tables.console().print("percentiles: " + ", ".join(told))


def _show_sample(sample: Sample) -> None:
    body = Text()
    for part in sample.parts:
        body.append_text(_part(part))
    shown = sum(len(part.ids) for part in sample.parts)
    if shown < sample.tokens:
        body.append(f" ... {sample.tokens - shown:,} more tokens", "italic")
    title = Text(printable(f"document {sample.document:,}: {sample.id}, {sample.tokens:,} tokens"))
    tables.console().print(Panel(body, title=title, title_align="left"))


def _part(part: Part) -> Text:
    if part.text is None:
        return Text(" ".join(map(str, part.ids)) + " ", COLOURS[part.kind])
    return Text(printable(part.text), COLOURS[part.kind])


def _token_facts(found: Trace, token: TracedToken) -> list[tuple[str, Any]]:
    spelled = "" if token.text is None else f", {token.text!r}"
    facts: list[tuple[str, Any]] = [
        ("token", f"{token.id}{spelled}, at place {token.place:,} of its document"),
        ("class", token.kind if token.pair < 0 else f"{token.kind} of pair {token.pair}"),
    ]
    if token.character is not None:
        origin = found.origins[token.origin]
        about = "character" if token.exact else "about character"
        place = f"{about} {token.character:,} of {origin.document_id}"
        facts.append(("raw text", f"{place} ({origin.source or 'no source'})"))
    return facts


def _show_pairs(found: Trace) -> None:
    rows = [
        (
            each.number,
            each.origin if each.origin >= 0 else "-",
            _safe(f"{each.question_tokens:,} tokens" if each.question is None else each.question),
            _safe(f"{each.answer_tokens:,} tokens" if each.answer is None else each.answer),
            _safe(", ".join(each.checks)),
        )
        for each in found.pairs
    ]
    if rows:
        tables.show("pairs", ("pair", "origin", "question", "answer", "checks passed"), rows)
