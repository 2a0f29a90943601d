"""Packed documents attend within themselves: each has the logits that it has when it is read alone."""

from __future__ import annotations

from typing import Any

import pytest

from gpu import runs

MASKED = "train.reset_attention_mask=true"
ATTENTION = ("fused", "auto")
LIMIT = 2e-2
"""Of logits in bf16, relative; without the mask they are off by ten times as much and more."""


def overrides(attention: str) -> list[str]:
    backend = [] if runs.REHEARSAL else [f"train.transformer_config.attention_backend={attention}"]
    return [MASKED, *backend]


@pytest.mark.usefixtures("transformer_engine")
@pytest.mark.parametrize("attention", ATTENTION)
def test_a_document_is_read_as_if_it_were_alone(attention: str, setting: runs.Setting, figures: Any) -> None:
    name = f"documents_{attention}"
    told = setting.run({name: ("documents", overrides(attention))})[name]
    masked, whole = (runs.off(told[name], told["alone"]) for name in ("packed", "whole"))
    figures(lengths=told["lengths"], off=masked, off_without_the_mask=whole, layers=told["layers"])
    assert len(set(told["lengths"])) > 2, "the batch has too few documents to tell"
    assert whole > 10 * LIMIT and masked <= LIMIT


@pytest.mark.usefixtures("transformer_engine")
def test_a_run_with_document_masks_learns(setting: runs.Setting, figures: Any) -> None:
    """Forward, backward and update through packed attention: not the losses of whole sequences, and falling."""
    length = runs.steps(30, 8)
    found = setting.run({"masked": ("run", [length, MASKED]), "whole": ("run", [length])})
    masked, whole = runs.losses(found["masked"]), runs.losses(found["whole"])
    figures(masked=masked, whole=whole)
    assert masked != whole and masked[-1] < masked[0] - 0.1
    assert abs(masked[-1] - whole[-1]) < 0.1 * whole[-1]
