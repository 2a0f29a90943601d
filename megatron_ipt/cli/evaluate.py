"""ipt evaluate: bits per byte of a Hugging Face directory on JSONL texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_ipt.cli import steps
from megatron_ipt.cli.options import settings_options
from megatron_ipt.recipe import EvaluateSettings


@settings_options(EvaluateSettings)
def evaluate(
    model: Annotated[Path, typer.Argument(help="Hugging Face directory")],
    texts: Annotated[list[Path], typer.Argument(help="JSONL with a `text` a line; each file is a set")],
    out: Annotated[Path, typer.Option(help="scores to write, JSON")],
    settings: EvaluateSettings,
) -> None:
    """Score held-out text with lm-eval: bits per byte, document by document."""
    steps.evaluate(settings, model, {path.stem: path for path in texts}, out)
