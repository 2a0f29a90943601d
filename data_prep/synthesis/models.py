"""Where a synthesizer's files lie: a folder, or a model of the Hugging Face hub, fetched into its cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from data_prep.errors import UserError
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.engines import Engine

PAPER: Final = Path("instruction-pretrain/instruction-synthesizer")
"""The authors' public synthesizer: Mistral-7B-v0.1, tuned on their collection (arXiv 2406.14491, section 2)."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TOKENIZER = ("*.json", "tokenizer*", "*.model")
_WEIGHTS = (*_TOKENIZER, "*.safetensors")


def model_of(settings: SynthesizeSettings, model: Path | str | None, engine: Engine | None = None) -> Path | None:
    """The files of the model that is named, or of the preset; of one that a server has, its tokenizer alone.

    None where none is named and none is needed: by the rules, or an `engine` that is there already.

    Raises:
        UserError: none is named, or it is neither a path nor to be had from the hub.
    """
    if model is None and settings.preset == "paper" and settings.engine != "rules":
        model = PAPER
    if model is None and settings.engine != "rules" and engine is None:
        raise UserError("--model", "no synthesizer is named", "give its directory, or take --engine rules")
    return local_model(model, weights=settings.engine != "server")


def named_at_servers(settings: SynthesizeSettings, model: Path | str | None) -> SynthesizeSettings:
    """The settings with the name that servers know a model of the hub by: its own, not that of the cache's folder."""
    given = PAPER if model is None and settings.preset == "paper" else model
    if settings.engine != "server" or settings.server_model or not _is_of_the_hub(given):
        return settings
    return settings.model_copy(update={"server_model": str(given)})


def local_model(model: Path | str | None, *, weights: bool) -> Path | None:
    """The folder (or tokenizer file) of a model; `weights` says whether more than its tokenizer is wanted.

    Raises:
        UserError: it is neither a path nor to be had from the hub.
    """
    if not _is_of_the_hub(model):
        return None if model is None else Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(model), allow_patterns=list(_WEIGHTS if weights else _TOKENIZER)))
    except Exception as error:  # of the hub, the network, the disk: all end here
        words = f"{type(error).__name__}: {error}".partition("\n")[0]
        mend = "give the path of a folder that is there, or fetch it where there is a network"
        raise UserError(model, f"no such folder, and the Hugging Face hub does not give it ({words})", mend) from error


def _is_of_the_hub(model: Path | str | None) -> bool:
    return model is not None and not Path(model).exists() and _HUB_NAME.fullmatch(str(model)) is not None
