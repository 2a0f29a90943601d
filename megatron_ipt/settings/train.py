"""Settings of training: the parts, and what concerns several of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from megatron_ipt.settings.checkpoint import CheckpointSettings
from megatron_ipt.settings.layout import LayoutSettings
from megatron_ipt.settings.optimization import OptimizationSettings
from megatron_ipt.settings.precision import PrecisionSettings


class TrainSettings(CheckpointSettings, PrecisionSettings, OptimizationSettings, LayoutSettings):
    """ipt train: layout, batch, optimizer, schedule, checkpoints.  Names are Megatron's."""

    blend: Path | None = Field(None, description="blend.json of `ipt blend plan`; default: the recipe's own")
    seq_length: int = Field(ge=2, description="sequence length [tokens]")
    reset_attention_mask: bool = Field(False, description="attend within a document only, not over a whole sequence")
    reset_position_ids: bool = Field(
        False, description="positions restart with each document; needs reset_attention_mask"
    )
    held_out: Path | dict[str, Path] | None = Field(
        None, description="dataset prefix for validation, or name -> prefix of several; default: the recipe's own"
    )
    eval_interval: int | None = Field(None, ge=1, description="steps between validations")
    eval_iters: int = Field(8, ge=1, description="global batches of one validation [steps]")
    log_interval: int = Field(1, ge=1, description="steps between lines of metrics.jsonl")
    tensorboard_dir: Path | None = Field(None, description="folder of TensorBoard's event files; default: none")
    wandb_project: str | None = Field(None, description="project at Weights & Biases; the run has the recipe's name")
    deterministic_mode: bool = Field(
        False, description="the same bits each time, also across a resume: slower kernels (ipt train --deterministic)"
    )
    hang_seconds: float | None = Field(
        40.0,
        ge=5,
        description="the run ends when a step stands still for so long and ten times the slowest; null: never [s]",
    )
    parity_gate: bool = Field(True, description="refuse to start when loaded weights do not give transformers' logits")
    parity_precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="what the gate computes in; bfloat16, with wider limits, where the model fits in no other",
    )
    transformer_config: dict[str, Any] = Field({}, description="further fields of megatron-core's TransformerConfig")
    optimizer_config: dict[str, Any] = Field({}, description="further fields of megatron-core's OptimizerConfig")
    ddp_config: dict[str, Any] = Field({}, description="further fields of its DistributedDataParallelConfig")

    @model_validator(mode="after")
    def _documents_fit(self) -> Self:
        if self.reset_position_ids and not self.reset_attention_mask:
            raise ValueError(
                "reset_position_ids needs reset_attention_mask: Megatron's rotary embedding goes by the place in the "
                "sequence, so positions of a document alone would change nothing where attention crosses documents"
            )
        return self


FREE_TO_CHANGE: Final = frozenset(
    {
        *LayoutSettings.model_fields.keys() - {"bf16"},
        *CheckpointSettings.model_fields,
        *("train_iters", "blend", "held_out", "eval_interval", "eval_iters", "log_interval"),
        *("parity_gate", "parity_precision", "load_hf"),
        *(PrecisionSettings.model_fields.keys() - {"fp8_emulation"}),
        *("hang_seconds", "deterministic_mode", "tensorboard_dir", "wandb_project"),
    }
)
"""Settings that do not change what a step computes: length, places, intervals and layout."""
