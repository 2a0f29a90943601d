"""Whether a step's update is made: decided before the optimizer, from the loss and the gradient norm alone.

    not_finite   the loss or the gradient norm is NaN or infinite: an update would put that into the weights
    no_label     no token of the batch counts: there is no gradient, and Adam would still move the weights
    spike        the loss, or the logarithm of the gradient norm, is more than `spike_sigma` standard deviations above
                 its mean over the last `spike_window` updates

A step that is left out consumes its samples and counts in the schedule; the optimizer does not see it.  The rule of
spikes begins when half a window is known, and what it leaves out does not enter the window.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Self

from data_prep.errors import UserError


class Verdict(IntEnum):
    """What becomes of a step.  The largest of all ranks counts."""

    TAKE = 0
    SPIKE = 1
    NO_LABEL = 2
    NOT_FINITE = 3


_MENDS = {
    Verdict.SPIKE: "lower train.lr, look at train/quarantine.jsonl, or raise train.spike_sigma",
    Verdict.NO_LABEL: "look at the loss policy of the blend's sources, and at train/quarantine.jsonl",
    Verdict.NOT_FINITE: "the last checkpoint is whole: lower train.lr, or look at train/quarantine.jsonl",
}


class SpikeRule:
    """The rule, what it remembers, and what it has left out so far."""

    def __init__(self, sigma: float | None, window: int, most_in_a_row: int) -> None:
        """`sigma` None: no step is a spike.  `window` in updates; `most_in_a_row` steps may be left out together."""
        self.skipped = {verdict: 0 for verdict in Verdict if verdict is not Verdict.TAKE}
        self.in_a_row = 0
        self._sigma, self._most_in_a_row = sigma, most_in_a_row
        self._losses: deque[float] = deque(maxlen=window)
        self._norms: deque[float] = deque(maxlen=window)

    def judge(self, loss: float, tokens: int, norm: float) -> Verdict:
        """What this rank says of a step with `tokens` labels that count, `loss` in nats, gradient norm unclipped."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return Verdict.NOT_FINITE
        if not tokens:
            return Verdict.NO_LABEL
        above = self._above(self._losses, loss) or self._above(self._norms, _logarithm(norm))
        return Verdict.SPIKE if above else Verdict.TAKE

    def note(self, verdict: Verdict, loss: float, norm: float) -> None:
        """Remember what all ranks agreed on."""
        if verdict is Verdict.TAKE:
            self.in_a_row = 0
            self._losses.append(loss)
            self._norms.append(_logarithm(norm))
        else:
            self.skipped[verdict] += 1
            self.in_a_row += 1

    def check(self, verdict: Verdict, loss: float, norm: float, iteration: int) -> None:
        """UserError when too many steps in a row are left out, the last of them for `verdict`."""
        if self.in_a_row < self._most_in_a_row:
            return
        what = {
            Verdict.SPIKE: f"a spike (loss {loss:.4g}, gradient norm {norm:.4g})",
            Verdict.NO_LABEL: "no label of the batch counts",
            Verdict.NOT_FINITE: f"the loss is {loss}, the gradient norm {norm}",
        }[verdict]
        problem = f"{what}; {self.in_a_row} step(s) in a row are without an update"
        raise UserError(f"iteration {iteration}", problem, _MENDS[verdict])

    def counts(self) -> dict[str, int]:
        """Steps left out so far, by reason."""
        return {verdict.name.lower(): count for verdict, count in self.skipped.items()}

    def state(self) -> dict[str, Any]:
        """All that a later step depends on, as JSON keeps it exactly."""
        return {
            "skipped": self.counts(),
            "in_a_row": self.in_a_row,
            "losses": list(self._losses),
            "log_norms": list(self._norms),
        }

    def restored(self, state: Mapping[str, Any]) -> Self:
        """This rule going on from `state`; an empty one leaves it as it is."""
        if state:
            self.skipped = {verdict: state["skipped"].get(verdict.name.lower(), 0) for verdict in self.skipped}
            self.in_a_row = state["in_a_row"]
            self._losses.extend(state["losses"])
            self._norms.extend(state["log_norms"])
        return self

    def _above(self, known: deque[float], value: float) -> bool:
        if self._sigma is None or len(known) < max(2, (known.maxlen or 0) // 2):
            return False
        return value > statistics.fmean(known) + self._sigma * statistics.pstdev(known)


def agree(verdict: Verdict) -> Verdict:
    """The gravest verdict of all ranks: one that went on alone would leave the others waiting.  All ranks call it."""
    from megatron_ipt.mcore import parallel

    return Verdict(int(parallel.largest_over_ranks(verdict)))


def _logarithm(norm: float) -> float:
    return math.log(max(norm, 1e-30))
