"""Transformer Engine's layers against the local ones: the same weights, the same batch."""

from __future__ import annotations

from typing import Any

import pytest

from gpu import runs

LIMITS = {"fp32": (1e-5, 1e-4, 1e-3), "bf16": (5e-3, 3e-2, 1e-1)}
"""Of the loss, the logits and each gradient, relative to the local layers'."""


@pytest.mark.usefixtures("transformer_engine")
@pytest.mark.parametrize("numbers", LIMITS)
def test_loss_logits_and_gradients_are_those_of_the_local_layers(
    numbers: str, setting: runs.Setting, figures: Any
) -> None:
    bf16 = f"train.bf16={str(numbers == 'bf16').lower()}"
    jobs = {
        f"{numbers}_auto": ("step", [bf16]),
        f"{numbers}_local": ("step", [bf16, "train.transformer_impl=local"]),
    }
    found = setting.run(jobs)
    ours, local = found[f"{numbers}_auto"], found[f"{numbers}_local"]
    assert ours["layers"] == ("local" if runs.REHEARSAL else "transformer_engine")
    assert ours["gradients"].keys() == local["gradients"].keys() and len(local["gradients"]) > 10
    loss = abs(ours["loss"] - local["loss"]) / local["loss"]
    gradients = {name: runs.off(value, local["gradients"][name]) for name, value in ours["gradients"].items()}
    logits, worst = runs.off(ours["logits"], local["logits"]), max(gradients, key=gradients.__getitem__)
    figures(loss=ours["loss"], loss_off=loss, logits_off=logits, gradient_off=gradients[worst], worst=worst)
    of_loss, of_logits, of_gradients = LIMITS[numbers]
    assert loss <= of_loss and logits <= of_logits and gradients[worst] <= of_gradients
