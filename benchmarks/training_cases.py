"""The models and layouts whose training speed is measured, in a recipe's own words.  Pure.

    8m-*             a model of 8M parameters, which a CPU trains: one process, two replicas, stages, parts of a matrix
    llama3.2-1b-*    Llama-3.2-1B's sizes (its rotary scaling, which costs nothing, left out)
    8b-N-layers-*    Llama-3-8B's width with N of its 32 layers, for a card of 80 GB
    8b-*             Llama-3-8B's sizes whole, for a card of 141 GB

-fp8 is Transformer Engine's current scaling (`tensorwise`), e4m3 forward and e5m2 for gradients, with the layers'
weights standing in FP8.  -graphs captures each layer as a CUDA graph.  All of the 8B width have 16-bit moments; in bf16
a parameter then takes 12 bytes: weight 2, gradient 4, moments 2 + 2, and of its exact fp32 master the 2 that the weight
has not (`store_param_remainders`).  In FP8 it takes 14: current scaling has whole fp32 masters (megatron-core's
optimizer_config.py), the weight and its transposed copy one byte each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import yaml

from data_prep.errors import UserError, nearest


@dataclass(frozen=True, slots=True)
class Case:
    """`model` and `train` are a recipe's sections, but for the data; `steps` of it, the first few not counted."""

    model: dict[str, Any]
    train: dict[str, Any]
    steps: int
    processes: int = 1
    threads: int = 1
    gpu: bool = False

    @property
    def fp8(self) -> bool:
        return bool(self.train.get("transformer_config", {}).get("fp8"))

    @property
    def tokens_a_step(self) -> int:
        return int(self.train["global_batch_size"] * self.train["seq_length"])

    @property
    def own_optimizer_numbers(self) -> bool:
        """Whether moments and masters stand in fewer bytes than fp32."""
        return bool(self.train.get("optimizer_config", {}).get("use_precision_aware_optimizer"))

    @property
    def needs_transformer_engine(self) -> bool:
        return self.fp8 or self.own_optimizer_numbers


def _sizes(layers: int, hidden: int, ffn: int, heads: int, groups: int, vocabulary: int) -> dict[str, Any]:
    return {
        "num_layers": layers,
        "hidden_size": hidden,
        "ffn_hidden_size": ffn,
        "num_attention_heads": heads,
        "num_query_groups": groups,
        "vocab_size": vocabulary,
        "rotary_base": 500000.0,
    }


def _small(processes: int, **layout: int) -> Case:
    train = {"seq_length": 512, "micro_batch_size": 2, "global_batch_size": 4, **layout}
    threads = 2 if processes == 1 else 1  # two threads each on two cores collapse
    return Case(_sizes(8, 256, 704, 8, 4, 4096), train, steps=25, processes=processes, threads=threads)


ON_A_GPU: Final = {
    "use_cpu_initialization": False,  # billions of numbers are drawn in seconds there, and FP8 weights are made there
    "cross_entropy_loss_fusion": True,
    "cross_entropy_fusion_impl": "native",  # megatron-core warns of Transformer Engine's: "known stability issues"
}
FP8: Final = {"fp8": "hybrid", "fp8_recipe": "tensorwise", "fp8_param": True}
SMALL_MOMENTS: Final = {
    "use_precision_aware_optimizer": True,
    "exp_avg_dtype": "bfloat16",
    "exp_avg_sq_dtype": "bfloat16",
    "store_param_remainders": True,
}
GRAPHS: Final = {"cuda_graph_impl": "local"}


def _on_a_gpu(
    model: dict[str, Any], micro_batch_size: int, *further: dict[str, Any], optimizer: dict[str, Any], again: int = 0
) -> Case:
    """One process on one card; `again`: layers whose activations are computed again in the backward pass."""
    train: dict[str, Any] = {"seq_length": 8192, "micro_batch_size": micro_batch_size, "global_batch_size": 8}
    train["hang_seconds"] = 300  # the first step compiles kernels
    train["transformer_config"] = dict(ON_A_GPU)
    for fields in further:
        train["transformer_config"] |= fields
    if optimizer:
        train["optimizer_config"] = dict(optimizer)
    if again:
        train |= {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": again}
    return Case(model, train, steps=14, threads=8, gpu=True)


def _llama_1b(*further: dict[str, Any]) -> Case:
    sizes = {**_sizes(16, 2048, 8192, 32, 8, 128256), "share_embeddings_and_output_weights": True}
    return _on_a_gpu(sizes, 2, *further, optimizer={})


def _llama_8b(layers: int, *further: dict[str, Any], again: int = 0) -> Case:
    return _on_a_gpu(_sizes(layers, 4096, 14336, 32, 8, 128256), 1, *further, optimizer=SMALL_MOMENTS, again=again)


CASES: Final[dict[str, Case]] = {
    "8m-one-process": _small(1),
    "8m-two-replicas": _small(2),
    "8m-two-stages": _small(2, pipeline_model_parallel_size=2),
    "8m-two-parts": _small(2, tensor_model_parallel_size=2),
    "llama3.2-1b-bf16": _llama_1b(),
    "llama3.2-1b-fp8": _llama_1b(FP8),
    "llama3.2-1b-fp8-graphs": _llama_1b(FP8, GRAPHS),
    "8b-8-layers-bf16": _llama_8b(8),
    "8b-8-layers-fp8": _llama_8b(8, FP8),
    "8b-8-layers-fp8-graphs": _llama_8b(8, FP8, GRAPHS),
    "8b-16-layers-bf16": _llama_8b(16, again=6),
    "8b-16-layers-fp8": _llama_8b(16, FP8, again=14),
    "8b-bf16": _llama_8b(32, again=4),
    "8b-fp8": _llama_8b(32, FP8, again=16),
}


def case_named(name: str) -> Case:
    if name not in CASES:
        raise UserError(f"--case {name}", "there is no such case", nearest(name, CASES))
    return CASES[name]


def changed(case: Case, overrides: Sequence[str]) -> Case:
    """`case` with dotted keys of its `train` section set, for both sides: `recompute_num_layers=8`."""
    train = dict(case.train)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"--set {override}", "is not KEY=VALUE", "write it as recompute_num_layers=8")
        *sections, name = key.split(".")
        at = train
        for section in sections:
            at[section] = dict(at.get(section, {}))
            at = at[section]
        at[name] = yaml.safe_load(value)
    return replace(case, train=train)
