"""Settings of what a step computes: batch, optimizer, learning rate."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from data_prep.settings import Settings
from megatron_ipt.settings.batches import BatchSizes


class RewarmSettings(Settings):
    """The learning rate rises again, in the middle of a run: for a new phase of the data, or a longer run."""

    at_samples: int = Field(ge=1, description="sample at which it begins, from the rate reached there [samples]")
    lr: float = Field(gt=0, description="peak learning rate it rises to")
    warmup_samples: int = Field(ge=0, description="length of the linear rise [samples]")
    decay_samples: int = Field(ge=1, description="from at_samples to the end of the decay, rise included [samples]")
    min_lr: float | None = Field(None, ge=0, description="learning rate at the end of its decay; default min_lr")
    wsd_decay_samples: int | None = Field(
        None, ge=1, description="with WSD: length of its final decay; default as before [samples]"
    )

    @model_validator(mode="after")
    def _rise_fits(self) -> Self:
        if self.warmup_samples >= self.decay_samples:
            raise ValueError(
                f"warmup_samples={self.warmup_samples} must be less than decay_samples={self.decay_samples}"
            )
        return self


class OptimizationSettings(Settings):
    """Length, batch, Adam and its schedule."""

    train_iters: int = Field(ge=0, description="steps of the whole run, resumed ones included [steps]")
    global_batch_size: int = Field(ge=1, description="sequences of one step over all ranks [samples]")
    step_batch_size_schedule: str | None = Field(
        None,
        description='batch by samples consumed, "0:4 32:8": 4 from sample 0, 8 from sample 32; ends in '
        "global_batch_size [samples]",
    )
    lr: float = Field(gt=0, description="peak learning rate")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the decay")
    lr_decay_style: Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"] = Field(
        "cosine", description="shape of the decay (Megatron's OptimizerParamScheduler)"
    )
    lr_decay_iters: int | None = Field(None, ge=1, description="steps the decay takes; default train_iters [steps]")
    lr_decay_samples: int | None = Field(None, ge=1, description="the same in samples, instead [samples]")
    lr_warmup_iters: int = Field(0, ge=0, description="steps of linear warm-up from lr_warmup_init [steps]")
    lr_warmup_samples: int | None = Field(None, ge=0, description="the same in samples, instead [samples]")
    lr_warmup_init: float = Field(0.0, ge=0, description="learning rate that the warm-up begins at")
    lr_wsd_decay_iters: int | None = Field(None, ge=1, description="with WSD: length of the final decay [steps]")
    lr_wsd_decay_samples: int | None = Field(None, ge=1, description="the same in samples, instead [samples]")
    lr_wsd_decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = Field(
        "cosine", description="with WSD: shape of the final decay"
    )
    lr_rewarm: list[RewarmSettings] = Field([], description="further warm-ups, in rising order of at_samples")
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay; norms and biases have none")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="first-moment decay")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="second-moment decay")
    adam_eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    clip_grad: float = Field(1.0, ge=0, description="largest global gradient norm; 0 does not clip")
    spike_sigma: float | None = Field(
        None,
        gt=0,
        description="leave out a step whose loss or log gradient norm is so many standard deviations above its mean; "
        "default: take every finite one",
    )
    spike_window: int = Field(128, ge=4, description="steps that mean and deviation are of; half of them first [steps]")
    most_skips_in_a_row: int = Field(
        3, ge=1, description="the run ends when so many steps in a row are left out, for whatever reason [steps]"
    )
    seed: int = Field(1234, description="seed of freshly made weights")

    @property
    def batch_sizes(self) -> BatchSizes:
        """The batch of each step."""
        if self.step_batch_size_schedule is None:
            return BatchSizes(((0, self.global_batch_size),))
        return BatchSizes.parse(self.step_batch_size_schedule)

    @property
    def schedule_samples(self) -> tuple[int, int, int | None]:
        """Warm-up, decay, and the final decay of WSD, all in samples."""
        sizes = self.batch_sizes
        warmup, decay, wsd = self.lr_warmup_samples, self.lr_decay_samples, self.lr_wsd_decay_samples
        if warmup is None:
            warmup = sizes.consumed_after(self.lr_warmup_iters)
        if decay is None:
            decay = sizes.consumed_after(max(self.lr_decay_iters or self.train_iters, 1))
        if wsd is None and self.lr_wsd_decay_iters is not None:
            wsd = self.lr_wsd_decay_iters * self.global_batch_size  # at the end of the run the ramp is over
        return warmup, decay, wsd

    @field_validator("step_batch_size_schedule")
    @classmethod
    def _is_a_ramp(cls, text: str | None) -> str | None:
        if text is not None:
            BatchSizes.parse(text)
        return text

    @model_validator(mode="after")
    def _ramp_fits(self) -> Self:
        if self.batch_sizes.sizes[-1] != self.global_batch_size:
            raise ValueError(
                f"step_batch_size_schedule ends in batches of {self.batch_sizes.sizes[-1]}, "
                f"global_batch_size is {self.global_batch_size}: set both to the same"
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        for name in ("lr_decay", "lr_warmup", "lr_wsd_decay"):
            if getattr(self, f"{name}_iters") and getattr(self, f"{name}_samples") is not None:
                raise ValueError(f"set {name}_iters or {name}_samples, not both")
        warmup, decay, wsd = self.schedule_samples
        if self.train_iters and warmup >= decay:
            if self.lr_warmup_samples is None and self.lr_decay_samples is None:
                decay_iters = self.lr_decay_iters or self.train_iters
                raise ValueError(
                    f"lr_warmup_iters={self.lr_warmup_iters} must be less than "
                    f"lr_decay_iters (default train_iters)={decay_iters}"
                )
            raise ValueError(f"the warm-up, {warmup} samples, must be shorter than the decay, {decay} samples")
        for name in ("min_lr", "lr_warmup_init"):
            if getattr(self, name) > self.lr:
                raise ValueError(f"{name}={getattr(self, name)} must not exceed lr={self.lr}")
        if (self.lr_decay_style == "WSD") != (wsd is not None):
            raise ValueError("lr_wsd_decay_iters (or _samples) goes with lr_decay_style: WSD, and only with it")
        return self

    @model_validator(mode="after")
    def _rewarming_fits(self) -> Self:
        starts = [rewarm.at_samples for rewarm in self.lr_rewarm]
        if any(after <= before for before, after in pairwise(starts)):
            raise ValueError(f"lr_rewarm: at_samples {starts} do not rise")
        for rewarm in self.lr_rewarm:
            if (self.min_lr if rewarm.min_lr is None else rewarm.min_lr) > rewarm.lr:
                raise ValueError(f"lr_rewarm at {rewarm.at_samples}: min_lr must not exceed its lr={rewarm.lr}")
        return self
