"""ipt report: one self-contained HTML page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_prep.errors import UserError
from megatron_ipt.cli import tables
from megatron_ipt.cli.options import settings_options
from megatron_ipt.paths import RunPaths
from megatron_ipt.recipe import ReportSettings


@settings_options(ReportSettings)
def report(
    run: Annotated[Path, typer.Argument(help="output_dir of a run")],
    settings: ReportSettings,
) -> None:
    """Write RUN/report.html from whatever the run has written."""
    from megatron_ipt.report import report as write

    if not run.is_dir():
        raise UserError(run, "no such run", "give the output_dir of a recipe")
    tables.console().print(f"wrote {write(settings, RunPaths(run), run.name)}")
