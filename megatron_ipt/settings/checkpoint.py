"""Settings of what a run writes and goes on from."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

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
