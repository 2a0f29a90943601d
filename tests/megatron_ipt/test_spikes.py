"""Which steps are left out: the rule alone, against plain statistics."""

from __future__ import annotations

import json
import math
from collections import deque

import numpy as np
import pytest

from data_prep.errors import UserError
from megatron_ipt.training.spikes import SpikeRule, Verdict


def expected(losses: list[float], norms: list[float], sigma: float, window: int) -> list[int]:
    """Steps that numpy calls spikes, over the last `window` steps that it did not."""
    found, kept = [], deque[tuple[float, float]](maxlen=window)
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        now = np.array([loss, np.log(norm)])
        known = np.array(kept)
        if len(kept) >= window // 2 and (now > known.mean(0) + sigma * known.std(0)).any():
            found.append(step)
        else:
            kept.append((loss, float(np.log(norm))))
    return found


def test_spikes_are_those_of_plain_statistics_also_after_a_resume() -> None:
    generator = np.random.default_rng(5)
    losses = (3 - np.arange(200) / 150 + generator.normal(0, 0.05, 200)).tolist()
    norms = np.exp(generator.normal(0, 0.2, 200)).tolist()
    losses[60] += 2
    norms[90] *= 30
    wanted = expected(losses, norms, 2.0, 6)
    assert {60, 90} <= set(wanted) and len(wanted) < 100
    rule, found = SpikeRule(2.0, 6, 5), []
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        if step % 7 == 0:
            rule = SpikeRule(2.0, 6, 5).restored(json.loads(json.dumps(rule.state())))
        verdict = rule.judge(loss, 100, norm)
        rule.note(verdict, loss, norm)
        if verdict is Verdict.SPIKE:
            found.append(step)
    assert found == wanted
    assert rule.counts() == {"spike": len(wanted), "no_label": 0, "not_finite": 0}


@pytest.mark.parametrize(
    ("loss", "tokens", "norm", "verdict"),
    [
        (math.nan, 5, 1.0, Verdict.NOT_FINITE),
        (2.0, 5, math.inf, Verdict.NOT_FINITE),
        (0.0, 0, 0.0, Verdict.NO_LABEL),
        (50.0, 5, 1e6, Verdict.TAKE),
    ],
)
def test_without_sigma_only_what_is_no_number_or_has_no_label_is_left_out(
    loss: float, tokens: int, norm: float, verdict: Verdict
) -> None:
    rule = SpikeRule(None, 4, 3)
    for step in range(8):
        rule.note(Verdict.TAKE, 2.0 + step % 2, 1.0)
    assert rule.judge(loss, tokens, norm) is verdict


def test_the_run_ends_after_a_few_in_a_row_and_not_before() -> None:
    rule = SpikeRule(None, 4, 2)
    for step, verdict in enumerate((Verdict.NOT_FINITE, Verdict.TAKE, Verdict.NO_LABEL)):
        rule.note(verdict, math.nan, math.nan)
        rule.check(verdict, math.nan, math.nan, step)
    rule.note(Verdict.NOT_FINITE, math.nan, 1.0)
    with pytest.raises(UserError, match=r"iteration 7: the loss is nan.*2 step\(s\) in a row"):
        rule.check(Verdict.NOT_FINITE, math.nan, 1.0, 7)
