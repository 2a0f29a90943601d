"""Optimizer states in fewer bytes: which formats there are, what they ask for, and what a parameter then takes.  Pure.

`train.optimizer_config: {use_precision_aware_optimizer: true, exp_avg_dtype: bfloat16, exp_avg_sq_dtype: bfloat16}`
keeps both moments in bf16; the fp32 master is kept as the 16 bits that the bf16 weight lacks (`store_param_remainders`,
megatron-core's default), bit for bit what a whole one is.  With the weight and an fp32 gradient that is 12 bytes a
parameter where Adam in fp32 has 18.  The update is Transformer Engine's FusedAdam's, so a run needs a GPU; what is
legal is known without it (transformer_engine/pytorch/optimizers/fused_adam.py, 2.20).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from megatron_ipt.mcore import fp8
from megatron_ipt.mcore.contradiction import Contradiction
from megatron_ipt.settings import TrainSettings

SECTION: Final = "train.optimizer_config"
SWITCH: Final = "use_precision_aware_optimizer"
LEGAL: Final = {
    "exp_avg_dtype": ("float32", "float16", "bfloat16", "uint8"),
    "exp_avg_sq_dtype": ("float32", "float16", "bfloat16", "uint8"),
    "main_params_dtype": ("float32", "float16"),
    "main_grads_dtype": ("float32", "bfloat16"),
}
"""What each may be; `uint8` is FP8 with a scale a tensor."""

FIELDS: Final = (SWITCH, "store_param_remainders", *LEGAL)
_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1}


def is_wanted(train: TrainSettings) -> bool:
    return bool(train.optimizer_config.get(SWITCH))


def contradictions(train: TrainSettings) -> Iterator[Contradiction]:
    own = train.optimizer_config
    yield from _of_offload(train)
    if not is_wanted(train):
        for field in LEGAL:
            if own.get(field, "float32") != "float32":
                yield Contradiction(f"{SECTION}.{field}", f"needs {SWITCH}", f"set {SWITCH}: true beside it")
        return
    if not train.use_distributed_optimizer:
        problem, mend = "is the distributed optimizer's", "set train.use_distributed_optimizer: true"
        yield Contradiction(f"{SECTION}.{SWITCH}", problem, mend)
    if not train.bf16:
        problem, mend = "is of masters beside bf16 weights, and train.bf16 is false", "set train.bf16: true"
        yield Contradiction(f"{SECTION}.{SWITCH}", problem, mend)
    for field, legal in LEGAL.items():
        if own.get(field, "float32") not in legal:
            problem = f"Transformer Engine's FusedAdam has no {own[field]} for it"
            yield Contradiction(f"{SECTION}.{field}", problem, f"use {', '.join(legal)}")
    yield from _of_fp8(own, train)


def _of_offload(train: TrainSettings) -> Iterator[Contradiction]:
    """States in host memory go by the same path, as Megatron-LM's arguments.py says."""
    if not train.optimizer_config.get("optimizer_cpu_offload"):
        return
    if not is_wanted(train):
        yield Contradiction(f"{SECTION}.optimizer_cpu_offload", f"needs {SWITCH}", f"set {SWITCH}: true beside it")
    recipe = fp8.recipe_of(train.transformer_config)
    if train.transformer_config.get("fp8_param") and recipe not in (None, "delayed"):
        problem, mend = (
            f"does not go with fp8_param and fp8_recipe: {recipe}",
            "use fp8_recipe: delayed, or leave it out",
        )
        yield Contradiction(f"{SECTION}.optimizer_cpu_offload", problem, mend)


def _of_fp8(own: Mapping[str, Any], train: TrainSettings) -> Iterator[Contradiction]:
    """megatron-core reads gradients from another place unless masters are fp32 and scales are not delayed ones."""
    recipe = fp8.recipe_of(train.transformer_config)
    keeps_masters = recipe not in (None, "delayed") and own.get("main_params_dtype", "float32") == "float32"
    if keeps_masters and own.get("main_grads_dtype", "float32") != "float32":
        problem = f"{own['main_grads_dtype']} does not go with fp8_recipe {recipe}, whose masters are fp32"
        yield Contradiction(f"{SECTION}.main_grads_dtype", problem, "use float32, or fp8_recipe: delayed")


def gradient_bytes(train: TrainSettings) -> int:
    """Bytes of a parameter's gradient, in which replicas' are summed: 4, or 2 with `main_grads_dtype: bfloat16`."""
    return _BYTES[train.optimizer_config.get("main_grads_dtype", "float32")]


def state_bytes(train: TrainSettings) -> int:
    """Bytes of master and moments of a parameter, before they are shared out: 12 under bf16, 8 in fp32."""
    if not is_wanted(train):
        return 12 if train.bf16 else 8
    own = train.optimizer_config
    master = _BYTES[own.get("main_params_dtype", "float32")]
    recipe = fp8.recipe_of(train.transformer_config)
    halves = own.get("store_param_remainders", True) and recipe in (None, "delayed")
    moments = sum(_BYTES[own.get(field, "float32")] for field in ("exp_avg_dtype", "exp_avg_sq_dtype"))
    return (2 if halves and master == 4 else master) + moments
