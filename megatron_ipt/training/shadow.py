"""When FP8 is watched by a batch without it, and when steps are taken without it.  Pure.

Every `fp8_shadow_interval` steps the batch of a step is computed a second time without FP8, with the weights that the
step began with.  Both losses go to metrics.jsonl.  Where they differ by more than `fp8_shadow_tolerance` of the one
without FP8, the next `fp8_fallback_iters` steps do without FP8; a checkpoint carries how far that reaches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Shadow:
    """The probe's settings and the last iteration that is taken without FP8 [steps]."""

    interval: int | None = None
    tolerance: float | None = None
    fallback_iters: int = 1
    full_until: int = 0

    def restored(self, state: Mapping[str, Any]) -> Self:
        """As a checkpoint left it.  Without a probe no window goes on: graphs and buffers are for FP8 alone then."""
        return self if self.interval is None else replace(self, full_until=int(state.get("full_until", 0)))

    def state(self) -> dict[str, int]:
        return {"full_until": self.full_until} if self.full_until else {}

    def is_full(self, iteration: int) -> bool:
        """Whether this step is taken without FP8."""
        return iteration <= self.full_until

    def is_due(self, iteration: int, loss_tokens: int) -> bool:
        """Whether this step's batch is computed a second time.

        Without FP8 in the step there is nothing to watch, without a label that counts no loss to compare.
        """
        if self.interval is None or self.is_full(iteration):
            return False
        return iteration % self.interval == 0 and loss_tokens > 0

    def after(self, iteration: int, difference: float) -> Self:
        """`difference`: of the two losses, relative to the one without FP8; not a number counts as too large."""
        if self.tolerance is None or abs(difference) <= self.tolerance:
            return self
        return replace(self, full_until=iteration + self.fallback_iters)


def relative(low: float, full: float) -> float:
    """How far the loss in FP8 lies from the loss without it, in parts of the latter."""
    return (low - full) / full
