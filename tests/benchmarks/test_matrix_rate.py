"""The rate of matrix products that a model's share is counted from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matrix_rate
import pytest
import torch


def test_products_count_as_often_as_a_model_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_rate, "SQUARE", {"cpu": 8})

    def seconds(product: Callable[[], Any]) -> float:
        """A second each, but for those with 16 outputs, which take three."""
        return 3.0 if product().shape[-1] == 16 else 1.0

    monkeypatch.setattr(matrix_rate, "seconds", seconds)
    told = matrix_rate.rates([[4, 2, 32, 10], [4, 2, 16, 1]], "cpu")
    flop = 10 * 2 * 4 * 2 * 32 + 2 * 4 * 2 * 16
    assert told == {"bfloat16": {"square": 2.0 * 8**3, "products": pytest.approx(flop / 13)}}


def test_a_product_is_of_a_layers_shape_in_bf16() -> None:
    product = matrix_rate._bf16(6, 3, 5, "cpu")()
    assert product.shape == (6, 5) and product.dtype is torch.bfloat16


def test_a_machine_without_a_gpu_says_so() -> None:
    told = matrix_rate.machine()
    assert told["versions"]["megatron-core"] and told["versions"]["torch"]
    assert told["device"] and told["cores"] > 0
    assert bool(told["gpus"]) is torch.cuda.is_available() and (told["gpus"] or not told["transformer_engine"])
