"""Masters of weights in FP8 come from what was loaded, not from the random start: with a stand-in for such a weight."""

from __future__ import annotations

import pytest
import torch

from megatron_ipt.mcore.weights import fill_weight, keep_for_masters


class Quantized(torch.nn.Parameter):
    """Rounds what is copied into it and carries what it was made from, as Transformer Engine's weights do."""

    made_from: torch.Tensor

    def copy_(self, value: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        return super().copy_(value.to(torch.float8_e4m3fn).to(value.dtype))

    def get_high_precision_init_val(self) -> torch.Tensor | None:
        return getattr(self, "made_from", None)


@pytest.fixture
def weight() -> Quantized:
    made = Quantized(torch.zeros(3), requires_grad=False)
    made.made_from = torch.full((3,), 7.0)  # the random start
    return made


def test_a_loaded_weight_is_what_its_master_is_made_from(weight: Quantized) -> None:
    value = torch.tensor([0.3, -1.01, 2.2])
    fill_weight(weight, value)
    assert not torch.equal(weight, value)
    assert torch.equal(weight.made_from, value)


def test_a_weight_that_stands_already_tells_its_master_alone(weight: Quantized) -> None:
    value = torch.tensor([0.3, -1.01, 2.2])
    keep_for_masters(weight, value)
    assert torch.equal(weight, torch.zeros(3)) and torch.equal(weight.made_from, value)


def test_another_weight_is_copied_and_no_more(weight: Quantized) -> None:
    plain = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
    fill_weight(plain, torch.ones(3))
    assert torch.equal(plain, torch.ones(3)) and not hasattr(plain, "get_high_precision_init_val")
    del weight.made_from  # as after the masters were made
    fill_weight(weight, torch.ones(3))
    assert torch.equal(weight, torch.ones(3))
