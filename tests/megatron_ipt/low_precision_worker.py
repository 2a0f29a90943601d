"""One process that tells, as JSON, what emulated layers compute and what their products are written out."""

from __future__ import annotations

import json
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_ipt.mcore import dry, parallel
from megatron_ipt.mcore.layers import block_spec
from megatron_ipt.mcore.low_precision import LINEAR, full_precision, rounded
from megatron_ipt.settings import TrainSettings

FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
GRADIENT = {"hybrid": "e5m2", "e4m3": "e4m3"}


def nearest(x: torch.Tensor, name: str) -> torch.Tensor:
    """By search among all values of the format, the largest magnitude of `x` scaled to the format's largest."""
    values = torch.arange(256, dtype=torch.uint8).view(FORMATS[name]).double()
    values = values[values.isfinite()].unique()
    scale = values.max() / x.detach().abs().max().double()
    scaled = x.detach().double().flatten() * scale
    found = values[(scaled[:, None] - values).abs().argmin(dim=1)]
    return (found / scale).reshape(x.shape)


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.detach().double() - expected).norm() / expected.norm())


def formats() -> dict[str, Any]:
    """Of each format and magnitude: how far from the nearest values, and the share of numbers that changed."""
    told = {}
    for name, dtype in FORMATS.items():
        for magnitude in (1e-6, 1.0, 3e4):
            x = torch.randn(40, 30, generator=torch.Generator().manual_seed(1)) * magnitude
            found = rounded(x, dtype)
            told[f"{name} {magnitude}"] = [off(found, nearest(x, name)), float((found != x).float().mean())]
    return {**told, "zeros": rounded(torch.zeros(3), FORMATS["e4m3"]).tolist()}


def products(config: TransformerConfig) -> dict[str, list[float]]:
    """Of each layer: how far the forward product and both gradients are from those of rounded operands."""
    told = {}
    for fp8, kinds in LINEAR.items():
        for kind in kinds:
            own = {"input_is_parallel": True} if "Row" in kind.__name__ else {}
            linear = kind(16, 8, config=config, init_method=config.init_method, bias=False, skip_bias_add=True, **own)
            x = torch.randn(5, 2, 16, requires_grad=True)
            upstream = torch.randn(5, 2, 8)
            found, _ = linear(x)
            found.backward(upstream)
            x8, w8, g8 = nearest(x, "e4m3"), nearest(linear.weight, "e4m3"), nearest(upstream, GRADIENT[fp8])
            weight = g8.flatten(0, 1).T @ x8.flatten(0, 1)
            told[kind.__name__] = [off(found, x8 @ w8.T), off(x.grad, g8 @ w8), off(linear.weight.grad, weight)]
    return told


def switched(config: TransformerConfig) -> dict[str, Any]:
    """What `full_precision` turns off, and whether it is on again afterwards."""
    linear = LINEAR["hybrid"][0](16, 8, config=config, init_method=config.init_method, bias=False)
    chunks, x = [torch.nn.Sequential(linear)], torch.randn(5, 2, 16)
    plain, emulated = torch.nn.functional.linear(x, linear.weight), linear(x)[0]
    config.fp8 = "hybrid"
    with full_precision(chunks):
        within = [config.fp8, bool(torch.equal(linear(x)[0], plain))]
    with full_precision(chunks, wanted=False):
        unwanted = [config.fp8, bool(torch.equal(linear(x)[0], emulated))]
    after = [config.fp8, bool(torch.equal(linear(x)[0], emulated)), bool(torch.equal(emulated, plain))]
    return {"within": within, "unwanted": unwanted, "after": after}


def layers(config: TransformerConfig, fp8_emulation: str | None) -> list[str]:
    """The four linear layers of a decoder layer."""
    layer = block_spec(config, None, fp8_emulation=fp8_emulation).layer_specs[0].submodules
    attention, mlp = layer.self_attention.submodules, layer.mlp
    mlp = mlp.keywords["submodules"] if hasattr(mlp, "keywords") else mlp.submodules
    parts = (attention.linear_qkv, attention.linear_proj, mlp.linear_fc1, mlp.linear_fc2)
    return [part.__name__ for part in parts]


train = TrainSettings(global_batch_size=1, seq_length=8, train_iters=1, lr=1e-3, bf16=False)
with dry.fake_group(0, 1), parallel.model_parallel(train, with_gloo=False):
    torch.manual_seed(2)
    config = TransformerConfig(
        num_layers=1, hidden_size=16, num_attention_heads=2, use_cpu_initialization=True, transformer_impl="local"
    )
    spec = {str(fp8): layers(config, fp8) for fp8 in (None, "hybrid", "e4m3")}
    found = {"spec": spec, "formats": formats(), "products": products(config), "switched": switched(config)}
print(json.dumps(found))
