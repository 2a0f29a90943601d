"""ipt blend: datasets and weights -> the order in which a run reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_prep.settings import BlendSettings
from megatron_ipt.cli import steps
from megatron_ipt.recipe import load_settings

app = typer.Typer(help="Datasets and weights -> a verified blend.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `plan` a verb of its own while it is the only one."""


@app.command()
def plan(
    file: Annotated[
        Path, typer.Argument(help="blend file, YAML: seq_length, train_samples, sources: {name: {prefix, weight}}")
    ],
    out: Annotated[Path, typer.Argument(help="folder for blend.json and plan.json")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ...")] = None,
) -> None:
    """Print shares and fractional epochs; write the pack tables and blend.json.  Prefixes are relative to FILE."""
    settings = load_settings(BlendSettings, file, overrides or [])
    steps.plan(settings, out, file.parent)
