"""Settings of what a run writes and goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from data_prep.settings import Settings


class CheckpointSettings(Settings):
    """Where checkpoints lie, when they are written, and what is loaded."""

    save: Path | None = Field(None, description="folder of checkpoints; default: the recipe's own")
    save_interval: int | None = Field(None, ge=1, description="steps between checkpoints; the last is always saved")
    stop_file: Path | None = Field(
        None, description="when this file appears, the run saves and ends after the step in hand; rank 0 must see it"
    )
    load: Path | None = Field(None, description="folder of checkpoints to continue from; default: `save`")
    finetune: bool = Field(False, description="load weights only: fresh optimizer, schedule and data position")
    dist_ckpt_optim_fully_reshardable: bool = Field(
        True,
        description="the optimizer's state loads with any layout: gathered at each save, 12 bytes a parameter of a "
        "rank; false: it loads with the same TP and PP and any DP, and is written without gathering",
    )
    fully_reshardable_interval: int | None = Field(
        None, ge=1, description="with that false: every Nth save loads with any layout; the last always does [saves]"
    )
    async_save: bool = Field(False, description="write behind training, from a copy in host memory; the last is not")
    save_retain_interval: int | None = Field(
        None, ge=1, description="keep the checkpoints of every Nth iteration, the newest besides; default: all [steps]"
    )
    most_recent_k: int | None = Field(None, ge=1, description="keep the newest K checkpoints besides; default: all")
    trust_checkpoint: bool = Field(
        False, description="open a checkpoint whose files no integrity.json lists: its pickles can run any code"
    )

    @model_validator(mode="after")
    def _forms_fit(self) -> Self:
        if self.fully_reshardable_interval and self.dist_ckpt_optim_fully_reshardable:
            raise ValueError("fully_reshardable_interval needs dist_ckpt_optim_fully_reshardable: false")
        return self

    def is_fully_reshardable(self, iteration: int, *, last: bool) -> bool:
        """Whether the save of `iteration` takes the form that any layout loads."""
        if last or self.dist_ckpt_optim_fully_reshardable:
            return True
        every = (self.save_interval or 1) * (self.fully_reshardable_interval or 0)
        return bool(every) and iteration % every == 0
