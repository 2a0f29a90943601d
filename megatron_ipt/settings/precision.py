"""Settings of precision: emulated FP8, and the probe that tells when FP8 drifts from bf16."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from data_prep.settings import Settings


class PrecisionSettings(Settings):
    """What watches over FP8.  FP8 itself is megatron-core's: `transformer_config: {fp8: hybrid, fp8_recipe: ...}`."""

    fp8_emulation: Literal["e4m3", "hybrid"] | None = Field(
        None,
        description="local layers round the operands of their products to FP8 and back: shows without a GPU what FP8 "
        "does to a loss; slow",
    )
    fp8_shadow_interval: int | None = Field(
        None, ge=1, description="every so many steps the same batch without FP8 too, its loss beside FP8's [steps]"
    )
    fp8_shadow_tolerance: float | None = Field(
        None, gt=0, description="relative difference of the two losses from which steps are taken without FP8"
    )
    fp8_fallback_iters: int = Field(100, ge=1, description="how many steps are taken without FP8 then [steps]")

    @model_validator(mode="after")
    def _tolerance_has_a_probe(self) -> Self:
        if self.fp8_shadow_tolerance is not None and self.fp8_shadow_interval is None:
            raise ValueError("fp8_shadow_tolerance needs fp8_shadow_interval: nothing is measured without it")
        return self
