"""ipt convert: Hugging Face directories and sharded checkpoints, in both directions, and the proof they agree."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from data_prep.errors import UserError
from megatron_ipt.cli import steps, tables
from megatron_ipt.cli.reshard import Trust, reshard, trusting


class Precision(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


app = typer.Typer(help="Hugging Face <-> checkpoint.", no_args_is_help=True)

app.command()(reshard)

Checkpoint = Annotated[Path, typer.Argument(help="folder of checkpoints, or one iter_* folder")]


@app.command("import")
def import_(
    hf: Annotated[Path, typer.Argument(help="Hugging Face directory")],
    out: Annotated[Path, typer.Argument(help="folder of checkpoints to write iter_0000000 into")],
    bf16: Annotated[bool, typer.Option("--bf16/--fp32", help="number format of the weights written")] = True,
) -> None:
    """Write a Hugging Face model as a sharded checkpoint that any layout loads."""
    from megatron_ipt.convert.import_hf import import_hf

    tables.console().print(f"wrote {import_hf(hf, out, bf16=bf16)}")


@app.command()
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Argument(help="Hugging Face directory to write")],
    source: Annotated[
        Path | None, typer.Option(help="directory the run began from: its config.json and tokenizer")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default: as the checkpoint holds them")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="directory or file of the tokenizer, for a model from scratch")
    ] = None,
    trust_checkpoint: Trust = False,
) -> None:
    """Write a checkpoint as a Hugging Face directory that transformers loads."""
    with trusting(trust_checkpoint):
        steps.export(checkpoint, out, source, dtype, tokenizer)


@app.command()
def parity(
    a: Annotated[Path, typer.Argument(help="Hugging Face directory or checkpoint")],
    b: Annotated[Path, typer.Argument(help="Hugging Face directory or checkpoint")],
    precision: Annotated[
        Precision, typer.Option(help="what both compute in; bfloat16 finds less, and needs half the memory")
    ] = Precision.float32,
    trust_checkpoint: Trust = False,
) -> None:
    """Compare two models' logits and layers on a fixed page; exit code 1 when they are not the same model."""
    from megatron_ipt.convert.parity import parity as compare

    with trusting(trust_checkpoint):
        found = compare(a, b, precision.value)
    tables.console().print(str(found))
    if not found.passed:
        raise UserError(b, f"not the same model as {a}", "see the figures above")
