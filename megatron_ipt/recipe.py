"""A recipe: one YAML file with dotted overrides -> typed settings under Megatron's names.

Each top-level section holds the settings of one step of `ipt run`; a section that is left out is a
step that does not run.  `torchrun -m megatron_ipt.pretrain --recipe R` reads the same file and
needs `model` and `train` only.  `${...}` refers to another key of the file (OmegaConf).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, Field, ValidationError
from yaml import YAMLError

from data_prep.errors import UserError, nearest
from data_prep.settings import (
    BlendSettings,
    CheckSettings,
    FetchSettings,
    IndexSettings,
    RenderSettings,
    Settings,
    SynthesizeSettings,
)
from megatron_ipt.settings import ModelSettings, TrainSettings


class EvaluateSettings(Settings):
    """ipt evaluate: bits per byte of held-out text (lm-eval, loglikelihood_rolling)."""

    max_tokens: int = Field(16384, ge=1, description="text scored of each set, whole documents [tokens]")
    self_made_tokens: int = Field(4096, ge=1, description="text scored of a set that was trained on [tokens]")
    max_length: int = Field(512, ge=16, description="window the model reads [tokens]")
    batch_size: int = Field(4, ge=1, description="windows scored together [sequences]")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="the model's number format while scored")
    prefix_token: str | None = Field(
        None, description="token before the first; default: the dataset's end-of-document token"
    )


class ReportSettings(Settings):
    """ipt report: one self-contained HTML page."""

    title: str = Field("Instruction Pre-Training", description="heading of the page")
    documents: int = Field(3, ge=0, description="documents shown with their pairs [documents]")
    smoothing: float = Field(0.8, ge=0, lt=1, description="weight of the past in the smoothed loss curve")


class Recipe(Settings):
    """All steps of one run.  `output_dir` holds whatever the steps write."""

    name: str = Field(description="name of the run")
    output_dir: Path = Field(description="folder of everything the run writes")
    fetch: FetchSettings | None = None
    synthesize: SynthesizeSettings | None = None
    check: CheckSettings | None = None
    render: RenderSettings | None = None
    index: IndexSettings | None = None
    blend: BlendSettings | None = None
    model: ModelSettings | None = None
    train: TrainSettings | None = None
    evaluate: EvaluateSettings | None = None
    report: ReportSettings | None = None


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path`, as `load_settings` reads it."""
    return load_settings(Recipe, path, overrides)


def load_settings[Model: Settings](model: type[Model], path: Path, overrides: Sequence[str] = ()) -> Model:
    """Read `path`, apply dotted `overrides` (`train.train_iters=5`), and check every key and value.

    Raises UserError for a missing file, bad YAML, an unknown key (with the nearest legal one) or a
    value of the wrong kind.
    """
    for override in overrides:
        if "=" not in override or override.startswith("-"):
            raise UserError(override, "not an override", "write it as section.key=value")
    try:
        loaded = OmegaConf.load(path)
        if not isinstance(loaded, DictConfig):
            raise UserError(path, "not a mapping", "its top level must be a mapping of keys")
        merged = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))
        raw = OmegaConf.to_container(merged, resolve=True)
    except FileNotFoundError as error:
        raise UserError(path, "no such file", "give the path of a YAML file") from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(path, f"not readable YAML ({error})", "mend it") from error
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError(path, *_explain(model, error)) from error


def nearest_few(name: str, legal: Iterable[str]) -> str:
    """A mend for an unknown name where hundreds are legal: the one it must mean, or a few that look like it."""
    names = sorted(legal)
    if difflib.get_close_matches(name, names, n=1, cutoff=0.5):
        return nearest(name, names)
    few = difflib.get_close_matches(name, names, n=4, cutoff=0.0)
    return f"the nearest names are {', '.join(few)}; `ipt train --settings` lists the keys of a run"


def _explain(model: type[Settings], error: ValidationError) -> tuple[str, str]:
    """The first fault of a validation error as (problem, mend); a misspelt key before the one it leaves missing."""
    first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        section = _model_at(model, location[:-1])
        legal = section.model_fields if section else ()
        mend = nearest_few if location[0] in ("train", "model") else nearest
        return f"unknown key '{key}'", mend(location[-1], legal)
    if first["type"] == "missing":
        return f"key '{key}' is missing", "set it in the file or as an override"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key}: {message}" if key else message, ""
    return f"{key}={first['input']!r}: {message}", ""


def _model_at(model: type[BaseModel], location: Sequence[str]) -> type[BaseModel] | None:
    """The settings class that stands at a dotted location below `model`."""
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            return model if issubclass(model, BaseModel) else None
        classes = [found for found in _classes(field.annotation) if issubclass(found, BaseModel)]
        if not classes:
            return None
        model = classes[0]
    return model


def _classes(annotation: Any) -> Iterator[type]:
    """Every class named in a type annotation."""
    if isinstance(annotation, type) and not getattr(annotation, "__args__", ()):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _classes(argument)


def section(recipe: Recipe, name: str) -> Any:
    """A section that the caller needs; UserError when the recipe leaves it out."""
    value = getattr(recipe, name)
    if value is None:
        raise UserError(recipe.name, f"the recipe has no section '{name}'", f"add `{name}:` to it")
    return value


def to_yaml(recipe: Recipe) -> str:
    """The resolved settings, defaults included, as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(recipe.model_dump(mode="json", exclude_none=True)))
