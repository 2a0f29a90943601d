"""What a blend is held against: caps of epochs, held-out text, and the mistakes that are meant.

`plan` keeps it in plan.json, so that a phase that is appended later is checked alike, and that a run at its start knows
which held-out sets were checked.  No sample depends on it, so it is no part of blend.json.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_prep.blend.model import Blend
from data_prep.manifest import read_manifest, write_json
from data_prep.settings import BlendSettings, MeantMistake


class HeldOutSet(BaseModel):
    """A dataset of validation text.  `prefix` is absolute in memory and relative to plan.json on disk."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prefix: Path
    data_hash: str


class Checks(BaseModel):
    """As BlendSettings has it; `own_epochs` are the max_epochs of single sources, by name as `copy_of`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    unit: Literal["tokens", "documents"] = "tokens"
    max_epochs: float = Field(4.0, gt=0)
    refuse_epochs: float = Field(16.0, gt=0)
    own_epochs: dict[str, float] = {}
    copy_of: dict[str, str] = {}
    allow: tuple[MeantMistake, ...] = ()
    held_out: dict[str, HeldOutSet] = {}

    @classmethod
    def of(cls, settings: BlendSettings, base_dir: Path) -> Self:
        """Those of a blend file, whose prefixes are relative to `base_dir`.  Errors: a UserError as `read_manifest`."""
        prefixes = {name: (base_dir / prefix).resolve() for name, prefix in settings.held_out.items()}
        return cls(
            unit=settings.unit,
            max_epochs=settings.max_epochs,
            refuse_epochs=settings.refuse_epochs,
            own_epochs={name: of.max_epochs for name, of in settings.sources.items() if of.max_epochs},
            copy_of={name: of.copy_of for name, of in settings.sources.items() if of.copy_of},
            allow=settings.allow,
            held_out={
                name: HeldOutSet(prefix=prefix, data_hash=read_manifest(prefix).data_hash)
                for name, prefix in prefixes.items()
            },
        )


def write_plan(path: Path, table: Mapping[str, Any], checks: Checks) -> None:
    """Writes plan.json: the table of a plan, and under `checks` what it was held against."""
    content = checks.model_dump(mode="json")
    for name, held_out in checks.held_out.items():
        content["held_out"][name]["prefix"] = Path(os.path.relpath(held_out.prefix, path.parent.resolve())).as_posix()
    write_json(path, {**table, "checks": content})


def read_plan(path: Path, blend: Blend) -> tuple[int | None, Checks | None]:
    """The samples of the run and what it was held against; None for what the plan of this blend does not tell."""
    try:
        content = orjson.loads(path.read_bytes())
        if content.get("blend_hash") != blend.hash:
            return None, None
        samples = content.get("train_samples")
        checks = Checks.model_validate(content["checks"]) if "checks" in content else None
    except (OSError, ValueError, AttributeError, ValidationError):
        return None, None
    if checks is not None:
        folder = path.parent.resolve()
        sets = {
            name: held_out.model_copy(update={"prefix": Path(os.path.normpath(folder / held_out.prefix))})
            for name, held_out in checks.held_out.items()
        }
        checks = checks.model_copy(update={"held_out": sets})
    return (samples if isinstance(samples, int) else None), checks
