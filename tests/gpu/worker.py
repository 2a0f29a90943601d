"""One process of tests/gpu, on the GPU or where none is seen on the CPU.

    worker.py RECIPE OUT.pt '{"name": ["run" | "step" | "documents" | "product", ["train.lr=1", ...]], ...}'

run         a training run: its rows of metrics
step        forward and backward of one global batch: its loss, the first micro batch's logits, all gradients
documents   logits of one micro batch with document masks, and of each of its documents read alone
product     what an fp32 product of the layers loses, against the same in double
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "megatron_ipt"))

import torch
from recorded import run_jobs, trained

from megatron_ipt.recipe import load_recipe, section

OF_LOCAL_LAYERS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
"""Names of Transformer Engine's parameters, which hold a norm and the product after it in one layer."""


def job(recipe: Path, given: tuple[str, list[str]]) -> dict[str, Any]:
    from megatron_ipt.mcore import device

    kind, overrides = given
    train = section(load_recipe(recipe, overrides), "train")
    found = {"run": run, "step": step, "documents": documents, "product": product}[kind](recipe, overrides)
    layers = device.transformer_impl(train.transformer_impl)
    return {**found, "device": device.pick("device"), "layers": layers}


def run(recipe: Path, overrides: list[str]) -> dict[str, Any]:
    return {"rows": trained(recipe, overrides)}


def built(recipe: Path, overrides: list[str]) -> Any:
    """(train, chunks with the recipe's weights, configuration, stream), within model-parallel groups."""
    from megatron_ipt.architecture import padded_vocab_size
    from megatron_ipt.convert.families import read_architecture
    from megatron_ipt.convert.load_hf import load_hf
    from megatron_ipt.data.stream import BlendStream
    from megatron_ipt.mcore import config as configs
    from megatron_ipt.mcore import model as models

    settings = load_recipe(recipe, overrides)
    train, model = section(settings, "train"), section(settings, "model")
    architecture = read_architecture(model.load_hf)
    config = configs.transformer_config(architecture, train)
    configs.check_runs_here(config, train)
    chunks = models.build(architecture, config, train, padded_vocab_size(architecture, model, train))
    load_hf(chunks, model.load_hf, architecture)
    return train, chunks, config, BlendStream(train.blend, reset_position_ids=train.reset_position_ids)


def step(recipe: Path, overrides: list[str]) -> dict[str, Any]:
    from megatron_ipt.data.loader import micro_batches
    from megatron_ipt.mcore import device, parallel
    from megatron_ipt.mcore import model as models

    with parallel.model_parallel(section(load_recipe(recipe, overrides), "train")):
        train, chunks, config, stream = built(recipe, overrides)
        wrapped = models.wrap(chunks, config, train)
        samples = range(train.global_batch_size)
        batches = list(micro_batches(stream.sample, samples, train.micro_batch_size, device.pick("device")))
        logits = models.logits(chunks, batches[0], train)
        for chunk in wrapped:
            chunk.zero_grad_buffer()
        losses = models.run_batch(wrapped, partial(iter, batches), train, backward=True)
        gradients = {
            local_name(name): weight.main_grad.detach().float().cpu()
            for name, weight in models.named_parameters(chunks)
        }
        return {"loss": losses.mean, "logits": logits.float().cpu(), "gradients": gradients}


def local_name(name: str) -> str:
    for theirs, ours in OF_LOCAL_LAYERS.items():
        if name.endswith(theirs):
            return name.removesuffix(theirs) + ours
    return name


def documents(recipe: Path, overrides: list[str]) -> dict[str, Any]:
    from megatron_ipt.data.loader import micro_batches
    from megatron_ipt.mcore import device, parallel
    from megatron_ipt.mcore import model as models

    with parallel.model_parallel(section(load_recipe(recipe, overrides), "train")):
        train, chunks, _, stream = built(recipe, overrides)
        count = train.micro_batch_size
        batch = next(micro_batches(stream.sample, range(count), count, device.pick("device")))
        packed = models.logits(chunks, batch, train)
        whole = models.logits(chunks, batch, train.model_copy(update={"reset_attention_mask": False}))
        alone, lengths = [], []
        for row in range(count):
            segments = batch["segments"][row]
            for segment in segments.unique_consecutive():
                part = {name: batch[name][row][segments == segment][None] for name in ("tokens", "labels")}
                part["position_ids"] = torch.arange(part["tokens"].shape[1], device=segments.device)[None]
                part["loss_mask"] = torch.ones_like(part["tokens"], dtype=torch.float32)
                alone.append(models.logits(chunks, part, train)[0])
                lengths.append(part["tokens"].shape[1])
        read = torch.cat(alone).view_as(packed)
        found = {"packed": packed, "whole": whole, "alone": read}
        return {**{name: logits.float().cpu() for name, logits in found.items()}, "lengths": lengths}


def product(recipe: Path, overrides: list[str]) -> dict[str, Any]:
    from megatron_ipt.mcore import device

    place = device.pick("device")
    torch.manual_seed(3)
    x, weight = torch.randn(512, 1024, device=place), torch.randn(768, 1024, device=place)
    if device.has_transformer_engine():
        import transformer_engine.pytorch as engine

        linear = engine.Linear(1024, 768, bias=False, params_dtype=torch.float32, device=place)
    else:
        linear = torch.nn.Linear(1024, 768, bias=False, device=place)
    with torch.no_grad():
        linear.weight.copy_(weight)
        found, exact = linear(x).double(), x.double() @ weight.double().T
    return {"off": float((found - exact).norm() / exact.norm())}


if __name__ == "__main__":
    run_jobs(job, write=torch.save)
