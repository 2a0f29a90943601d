"""Layers whose matrix products lose precision on purpose, and turning that off for a while.

On a GPU that is Transformer Engine's FP8.  Where there is none, `train.fp8_emulation` stands in: operands are cast to 8
bits and back, each tensor with one scale from its own largest value, and the product itself is computed in full.  It
shows what FP8's rounding does to a loss; it says nothing about speed, and is not bit for bit what a GPU computes.
"""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig

FORWARD: Final = torch.float8_e4m3fn
BACKWARD: Final = {"e4m3": torch.float8_e4m3fn, "hybrid": torch.float8_e5m2}
"""The format of gradients for each value of `fp8`."""


def rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`x` as FP8 with current scaling holds it: its largest magnitude becomes the format's, then back [dtype of x]."""
    largest = x.detach().abs().amax().float()
    scale = torch.where(largest > 0, torch.finfo(dtype).max / largest, torch.ones_like(largest))
    return ((x.float() * scale).to(dtype).float() / scale).to(x.dtype)


class _Forward(torch.autograd.Function):
    """Rounds a value; its gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return rounded(x, FORWARD)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]


class _Backward(torch.autograd.Function):
    """Rounds a gradient; its value passes as it is."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        ctx.dtype = dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return rounded(gradients[0], ctx.dtype), None


class _Emulated:
    """Mixed into megatron-core's linear layers: the three products of a step, each of two rounded operands."""

    gradient_dtype = BACKWARD["hybrid"]
    emulates = True

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        plain = super()._forward_impl  # type: ignore[misc]
        if not self.emulates:
            return plain(input, weight, *args, **kwargs)
        found = plain(_Forward.apply(input), _Forward.apply(weight), *args, **kwargs)
        return _Backward.apply(found, self.gradient_dtype)


class EmulatedColumnParallelLinear(_Emulated, ColumnParallelLinear):
    """Gradients in e5m2, as `fp8: hybrid` has them."""


class EmulatedRowParallelLinear(_Emulated, RowParallelLinear):
    """Gradients in e5m2."""


class E4M3ColumnParallelLinear(EmulatedColumnParallelLinear):
    """Gradients in e4m3."""

    gradient_dtype = BACKWARD["e4m3"]


class E4M3RowParallelLinear(EmulatedRowParallelLinear):
    """Gradients in e4m3."""

    gradient_dtype = BACKWARD["e4m3"]


LINEAR: Final = {
    "hybrid": (EmulatedColumnParallelLinear, EmulatedRowParallelLinear),
    "e4m3": (E4M3ColumnParallelLinear, E4M3RowParallelLinear),
}
"""`fp8_emulation` -> the layers that are split by columns and by rows."""


@contextmanager
def full_precision(chunks: Sequence[torch.nn.Module], *, wanted: bool = True) -> Iterator[None]:
    """Within, the products of these model chunks are those of bf16 (or fp32): no FP8, emulated or real."""
    modules = [module for chunk in chunks for module in chunk.modules()] if wanted else []
    emulated = [module for module in modules if isinstance(module, _Emulated)]
    found = [getattr(module, "config", None) for module in modules]
    configs = [config for config in found if isinstance(config, TransformerConfig)]
    before = [config.fp8 for config in configs]
    for module in emulated:
        module.emulates = False
    for config in configs:
        config.fp8 = None
    try:
        yield
    finally:
        for module in emulated:
            module.emulates = True
        for config, fp8 in zip(configs, before, strict=True):
            config.fp8 = fp8
