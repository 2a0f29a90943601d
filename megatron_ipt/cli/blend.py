"""ipt blend: datasets and weights -> the order in which a run reads them, before, during and after the run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from pydantic import ValidationError
from rich.markup import escape

from data_prep.errors import UserError, nearest
from data_prep.settings import (
    AMOUNT_UNITS,
    BlendSettings,
    MeantMistake,
    PhaseSettings,
    Settings,
    SourceKind,
    SourceSettings,
    parse_count,
)
from megatron_ipt.cli import tables
from megatron_ipt.cli.options import rows_of
from megatron_ipt.recipe import load_settings

app = typer.Typer(help="Datasets and weights -> a verified blend (docs/blend.md).", no_args_is_help=True)


def _list(wanted: bool) -> None:
    if wanted:
        models: dict[str, type[Settings]] = {
            "blend": BlendSettings,
            "sources.NAME": SourceSettings,
            "phases[]": PhaseSettings,
        }
        rows = [row for prefix, model in models.items() for row in rows_of(model, escape(prefix))]
        tables.show("keys of a blend file (in a recipe, of its section `blend`)", ("key", "default", "meaning"), rows)
        raise typer.Exit()


@app.command()
def plan(
    file: Annotated[
        Path, typer.Argument(help="blend file, YAML: seq_length, sources: {name: {prefix, kind, weight}}, phases, ...")
    ],
    out: Annotated[Path, typer.Argument(help="folder for blend.json and plan.json")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ...")] = None,
    train_tokens: Annotated[
        str | None, typer.Option(help=r"tokens the run will draw: 250M, 100B, 1.5T \[tokens]; default: the file's")
    ] = None,
    proxy_tokens: Annotated[
        str | None,
        typer.Option(
            help=r"plan a proxy run of so many tokens instead, each source shrunk to keep its epochs \[tokens]"
        ),
    ] = None,
    megatron: Annotated[
        Path | None,
        typer.Option(help="folder for the same blend as files for Megatron's --data-args-path and --per-split-..."),
    ] = None,
    settings: Annotated[
        bool,
        typer.Option("--settings", help="list every key of FILE, unit and default", is_eager=True, callback=_list),
    ] = False,
) -> None:
    """Print what each source gives to a run, and what looks wrong; write the pack tables, blend.json and plan.json.

    Prefixes are relative to FILE.  Mistakes that are meant stand in the file's `allow`.
    """
    from data_prep.blend import plan as run
    from data_prep.blend import read_blend
    from data_prep.blend.megatron_forms import not_said, refuse_split, write_forms
    from megatron_ipt.cli.blend_tables import show_lines, show_plan

    wanted = _with_lengths(load_settings(BlendSettings, file, overrides or []), train_tokens, proxy_tokens)
    if megatron is not None and wanted.proxy_tokens is not None:
        problem = "a proxy run shrinks its sources, which Megatron's options cannot say"
        raise UserError("--megatron", problem, "leave one of --proxy-tokens and --megatron out")
    if megatron is not None and wanted.split is not None:
        refuse_split()
    show_plan(run(wanted, out, file.parent))
    show_lines([str(out / name) for name in ("blend.json", "plan.json")], "wrote")
    if megatron is not None:
        held_out = [(file.parent / prefix).resolve() for prefix in wanted.held_out.values()]
        blend = read_blend(out / "blend.json")
        show_lines([str(path) for path in write_forms(blend, megatron, held_out)], "wrote")
        show_lines(not_said(blend), "note")
        if wanted.phases:
            show_lines(["Megatron takes one set of weights a run: a pair of files for each phase"], "note")


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="folder of a finished or running run, or its train.save")],
    blend: Annotated[
        Path | None, typer.Option(help="the blend.json it reads; default: its recipe's, or the folder's own")
    ] = None,
    documents: Annotated[bool, typer.Option(help="count how often each document was drawn")] = True,
    read: Annotated[
        int, typer.Option(min=0, help="samples whose tokens are read again, spread over the run; 0 for none [samples]")
    ] = 4096,
) -> None:
    """Hold what entered the model from each source, as the run counted it there, against the plan.

    Every recorded step must have drawn exactly what the schedule says, the whole be within one sample of the shares in
    every phase, and the tokens of some steps be those of the blend, by their checksums; where not, exit code 1.
    """
    from megatron_ipt.cli.blend_verify import verify_run

    verify_run(run, blend, documents, read)


@app.command()
def diff(
    one: Annotated[Path, typer.Argument(help="blend.json")],
    other: Annotated[Path, typer.Argument(help="blend.json")],
) -> None:
    """Tell what two blends say unlike, and from which sample on their data differ.  Exit code 1 if they differ."""
    from data_prep.blend import differences, first_difference, read_blend
    from megatron_ipt.cli.blend_tables import show_lines

    first, second = read_blend(one), read_blend(other)
    sample = first_difference(first, second)
    show_lines(differences(first, second), "unlike")
    if sample is None:
        tables.console().print("the same data at every sample")
        return
    tokens = f"{sample * first.seq_length:,} tokens" if first.seq_length == second.seq_length else "the begin"
    tables.console().print(f"the data differ from sample {sample:,} on ({tokens})")
    raise typer.Exit(1)


@app.command()
def append(
    blend: Annotated[
        Path, typer.Argument(help="blend.json, or the folder of a run that reads one", metavar="BLEND|RUN")
    ],
    weights: Annotated[
        list[str], typer.Option(help="NAME=WEIGHT[,NAME=WEIGHT ...], on any scale; a source left out gives nothing")
    ],
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", help=r"where it begins: 60B, or `now`; default of a RUN: its newest checkpoint \[tokens]"
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=PREFIX[:KIND][:KEY=VALUE ...], a new source; KIND: raw, augmented, general, tuning; KEY: "
            "policy, loss (default: those of the blend's sources of its kind), copy_of, max_epochs"
        ),
    ] = None,
    train_tokens: Annotated[
        str | None, typer.Option(help=r"tokens the run will draw in all, 120B \[tokens]; default: those of the plan")
    ] = None,
    max_epochs: Annotated[
        list[str] | None, typer.Option(help="NAME=NUMBER, a source's own limit, in place of the plan's")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="a mistake that is meant: copies, held_out, scales; besides the plan's")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="blend.json to write; default: in place, the old one kept as blend.HASH.json")
    ] = None,
) -> None:
    """Give a blend a further phase, from the run's position on: nothing before it changes.

    A run that has not come to it resumes with the new blend; one that is past it is refused.  What `plan` looks for is
    looked for here too, by the caps, held-out sets and `allow` that plan.json keeps.
    """
    from megatron_ipt.cli.blend_append import Wanted, append_phase

    wanted = Wanted(
        weights=_numbers("--weights", "weight", weights),
        added=dict(_new_source(text) for text in source or ()),
        begin=from_,
        train_tokens=None if train_tokens is None else count("--train-tokens", train_tokens),
        max_epochs=_numbers("--max-epochs", "number of epochs", max_epochs or []),
        allow=tuple(_meant(name) for name in allow or ()),
    )
    append_phase(blend, wanted, out)


def _with_lengths(settings: BlendSettings, train: str | None, proxy: str | None) -> BlendSettings:
    """The settings with the lengths that were given as options, which go over the file's."""
    changes: dict[str, object] = {}
    if train is not None:
        changes |= {"train_tokens": count("--train-tokens", train), "train_samples": None}
    if proxy is not None:
        changes["proxy_tokens"] = count("--proxy-tokens", proxy)
    try:
        return BlendSettings.model_validate({**settings.model_dump(), **changes})
    except ValidationError as error:
        raise UserError("--train-tokens", error.errors()[0]["msg"]) from error


def count(flag: str, text: str) -> int:
    """A count of tokens from the command line, 1 or more."""
    try:
        found = parse_count(text)
    except ValueError as error:
        raise UserError(flag, f"'{text}' is {error}") from error
    if found < 1:
        raise UserError(flag, f"'{text}' is below 1", "give the tokens of the run, 100B for example")
    return int(found)


def _numbers(flag: str, what: str, options: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in (part for option in options for part in option.split(",")):
        name, equals, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not equals or not 0 <= number < float("inf"):
            raise UserError(flag, f"'{part}' is no {what}", "write NAME=NUMBER, the number 0 or more")
        if name.strip() in found:
            raise UserError(flag, f"'{name.strip()}' stands there twice", f"give each source one {what}")
        found[name.strip()] = number
    return found


def _meant(name: str) -> MeantMistake:
    if name not in get_args(MeantMistake):
        raise UserError("--allow", f"'{name}' is no mistake that may be meant", nearest(name, get_args(MeantMistake)))
    return cast("MeantMistake", name)


def _new_source(text: str) -> tuple[str, SourceSettings]:
    """NAME=PREFIX[:KIND][:KEY=VALUE ...]."""
    name, equals, rest = text.partition("=")
    prefix, *parts = rest.split(":")
    values: dict[str, object] = {"prefix": Path(prefix).resolve()}
    for part in parts:
        key, says, value = part.partition("=")
        if says and key not in SourceSettings.model_fields:
            raise UserError("--source", f"'{key}' is no key of a source", nearest(key, SourceSettings.model_fields))
        values |= {key: value} if says else {"kind": part}
    amounts = set(values) & {*AMOUNT_UNITS}
    mend = f"write NAME=PREFIX:KIND:policy=chains:loss=pairs, KIND one of {', '.join(get_args(SourceKind))}"
    if not (name and equals and prefix) or amounts:
        raise UserError("--source", f"'{text}' is no source", mend + "; its weight goes with --weights" * bool(amounts))
    try:
        return name, SourceSettings.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        problem = f"'{text}' is no source ({'.'.join(map(str, fault['loc']))}: {fault['msg']})"
        raise UserError("--source", problem, mend) from error
