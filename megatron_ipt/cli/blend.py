"""ipt blend: datasets and weights -> the order in which a run reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from omegaconf import OmegaConf
from pydantic import ValidationError

from data_prep.errors import UserError
from data_prep.settings import BlendSettings
from megatron_ipt.cli import steps

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
    try:
        merged = OmegaConf.merge(OmegaConf.load(file), OmegaConf.from_dotlist(overrides or []))
        settings = BlendSettings.model_validate(OmegaConf.to_container(merged, resolve=True))
    except FileNotFoundError as error:
        raise UserError(file, "no such blend file", "give the path of a YAML file") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(file, f"{'.'.join(map(str, first['loc']))}: {first['msg']}", "mend the key") from error
    steps.plan(settings, out, file.parent)
