"""Settings of what a step computes: batch, optimizer, learning rate."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from data_prep.settings import Settings


class OptimizationSettings(Settings):
    """Length, batch, Adam and its schedule."""

    train_iters: int = Field(ge=0, description="steps of the whole run, resumed ones included [steps]")
    global_batch_size: int = Field(ge=1, description="sequences of one step over all ranks [samples]")
    lr: float = Field(gt=0, description="peak learning rate")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the decay")
    lr_decay_style: Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"] = Field(
        "cosine", description="shape of the decay (Megatron's OptimizerParamScheduler)"
    )
    lr_decay_iters: int | None = Field(None, ge=1, description="steps the decay takes; default train_iters [steps]")
    lr_warmup_iters: int = Field(0, ge=0, description="steps of linear warm-up from 0 [steps]")
    lr_wsd_decay_iters: int | None = Field(None, ge=1, description="with WSD: length of the final decay [steps]")
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay; norms and biases have none")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="first-moment decay")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="second-moment decay")
    adam_eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    clip_grad: float = Field(1.0, ge=0, description="largest global gradient norm; 0 does not clip")
    seed: int = Field(1234, description="seed of freshly made weights")

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        decay = self.lr_decay_iters or self.train_iters
        if self.train_iters and self.lr_warmup_iters >= decay:
            raise ValueError(
                f"lr_warmup_iters={self.lr_warmup_iters} must be less than lr_decay_iters (default train_iters)={decay}"
            )
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr} must not exceed lr={self.lr}")
        if (self.lr_decay_style == "WSD") != (self.lr_wsd_decay_iters is not None):
            raise ValueError("lr_wsd_decay_iters goes with lr_decay_style: WSD, and only with it")
        return self
