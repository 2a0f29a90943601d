"""What FP8 asks of the other settings, and what contradicts it: all of it known without Transformer Engine or a GPU.

The keys are megatron-core's, under `train.transformer_config`: `fp8` (e4m3, or hybrid: e4m3 forward and e5m2 for
gradients), `fp8_recipe` (how a tensor gets its scale), `fp8_param` (weights stand and are gathered in FP8).  What these
imply in OptimizerConfig and DistributedDataParallelConfig is derived here, where Megatron-LM has a flag for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.mcore.contradiction import Contradiction
from megatron_ipt.settings import TrainSettings

SECTION: Final = "train.transformer_config"
DEFAULT_RECIPE: Final = "delayed"
"""megatron-core's own default of fp8_recipe."""


class Card(NamedTuple):
    """What a recipe needs: a compute capability from `at_least` on, `below` another, and a CUDA [version, revision]."""

    at_least: tuple[int, int]
    below: tuple[int, int] = (99, 0)
    cuda: tuple[int, int] = (12, 1)


CARDS: Final = {
    "delayed": Card((8, 9)),
    "tensorwise": Card((8, 9)),
    "blockwise": Card((9, 0), cuda=(12, 9)),
    "mxfp8": Card((10, 0), below=(12, 0)),
}
"""Transformer Engine's own checks (pytorch/quantization.py, 2.20)."""

_DELAYED_ONLY: Final = ("fp8_margin", "fp8_interval", "fp8_amax_history_len", "fp8_amax_compute_algo")
_NEEDS_FP8: Final = (
    "fp8_param",
    "fp8_output_proj",
    "first_last_layers_bf16",
    "fp8_dot_product_attention",
    "fp8_multi_head_attention",
)


def contradictions(train: TrainSettings, layers_of_a_stage: int) -> Iterator[Contradiction]:
    """All of them.  `layers_of_a_stage`: layers of the model over pipeline stages, which megatron-core counts by."""
    transformer = train.transformer_config
    recipe = recipe_of(transformer)
    if recipe is None:
        for field in _NEEDS_FP8:
            if transformer.get(field):
                yield _of(field, "says how FP8 is used, and FP8 is off", "set fp8: hybrid beside it")
    else:
        yield from _with_fp8(recipe, transformer, train, layers_of_a_stage)
    if train.fp8_shadow_interval is not None and not (recipe or train.fp8_emulation):
        mend = "set train.transformer_config.fp8, or train.fp8_emulation on a machine without FP8"
        yield Contradiction("train.fp8_shadow_interval", "there is no FP8 to watch", mend)
    if train.fp8_emulation and recipe:
        problem = "stands in for FP8, and transformer_config.fp8 is set"
        yield Contradiction("train.fp8_emulation", problem, "leave one out")


def _of(field: str, problem: str, mend: str) -> Contradiction:
    return Contradiction(f"{SECTION}.{field}", problem, mend)


def _with_fp8(
    recipe: str, transformer: Mapping[str, Any], train: TrainSettings, layers_of_a_stage: int
) -> Iterator[Contradiction]:
    if not train.bf16:
        yield _of("fp8", "stands beside bf16, and train.bf16 is false", "set train.bf16: true")
    if transformer.get("fp8_param") and not train.use_distributed_optimizer:
        problem = "weights in FP8 are made and gathered by the distributed optimizer"
        yield _of("fp8_param", problem, "set train.use_distributed_optimizer: true")
    if transformer.get("fp8_param") and transformer.get("use_cpu_initialization"):
        yield _of("use_cpu_initialization", "weights in FP8 are made on the GPU", "leave it out")
    if recipe != "delayed":
        for field in _DELAYED_ONLY:
            if field in transformer:
                yield _of(field, f"is of delayed scaling, and fp8_recipe is {recipe}", "leave it out")
    if train.fp8_shadow_interval is not None and train.overlap_param_gather and _shared_buffer(recipe, transformer):
        problem = "weights would be gathered anew, through the buffer in which the step's gradients stand"
        yield Contradiction("train.fp8_shadow_interval", problem, "set train.overlap_param_gather: false")
    if transformer.get("fp8_output_proj") and recipe != "mxfp8":
        yield _of("fp8_output_proj", f"needs fp8_recipe: mxfp8, and it is {recipe}", "leave it out")
    if recipe == "custom" and not transformer.get("fp8_quantizer_factory"):
        yield _of("fp8_recipe", "custom needs fp8_quantizer_factory", "name a function, or use tensorwise")
    if transformer.get("first_last_layers_bf16"):
        yield from _layers_in_bf16(recipe, transformer, layers_of_a_stage)


def _layers_in_bf16(recipe: str, transformer: Mapping[str, Any], layers_of_a_stage: int) -> Iterator[Contradiction]:
    if recipe == "delayed":
        problem = "delayed scaling enters FP8 once for all layers"
        mend = "use fp8_recipe: tensorwise (or blockwise, mxfp8), or leave it out"
        yield _of("first_last_layers_bf16", problem, mend)
    for field in ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16"):
        if not 0 <= transformer.get(field, 1) <= layers_of_a_stage:
            problem = f"{transformer[field]} is not within a pipeline stage, which has {layers_of_a_stage} layers"
            yield _of(field, problem, f"use 0 to {layers_of_a_stage}")


def recipe_of(transformer: Mapping[str, Any]) -> str | None:
    """How scales are found; None where FP8 is off."""
    return (transformer.get("fp8_recipe") or DEFAULT_RECIPE) if transformer.get("fp8") else None


def transformer_fields(transformer: Mapping[str, Any]) -> dict[str, Any]:
    """What follows for TransformerConfig: weights are rounded as they are made, which Transformer Engine does on a GPU.

    So fresh ones are drawn there too, and depend on the tensor-parallel size; loaded ones do not.
    """
    return {"use_cpu_initialization": False} if recipe_of(transformer) and transformer.get("fp8_param") else {}


def optimizer_fields(transformer: Mapping[str, Any]) -> dict[str, Any]:
    """What follows for OptimizerConfig: the distributed optimizer goes by the recipe."""
    recipe = recipe_of(transformer)
    if recipe is None:
        return {}
    return {"fp8_recipe": recipe, **_shared_buffer(recipe, transformer)}


def ddp_fields(transformer: Mapping[str, Any]) -> dict[str, Any]:
    """What follows for DistributedDataParallelConfig: weights that stand in FP8 are gathered in it."""
    recipe = recipe_of(transformer)
    if recipe is None or not transformer.get("fp8_param"):
        return {}
    return {"fp8_param_gather": True, **_shared_buffer(recipe, transformer)}


def _shared_buffer(recipe: str, transformer: Mapping[str, Any]) -> dict[str, Any]:
    """An mxfp8 weight has two copies; gathering through the gradients' buffer saves the memory of a third."""
    return {"reuse_grad_buf_for_mxfp8_param_ag": True} if recipe == "mxfp8" and transformer.get("fp8_param") else {}


def check_card(transformer: Mapping[str, Any], name: str, capability: tuple[int, int], cuda: tuple[int, int]) -> None:
    """UserError where the GPU `name`, or the CUDA that torch was built with, lacks what the recipe needs."""
    recipe = recipe_of(transformer)
    if recipe is None or recipe not in CARDS or _fits(recipe, capability, cuda):
        return
    able = [other for other in CARDS if _fits(other, capability, cuda)]
    mend = f"use fp8_recipe: {' or '.join(able)}" if able else "train in bf16: leave fp8 out"
    needs, (major, minor) = CARDS[recipe], capability
    told = "needs compute capability {}.{}".format(*needs.at_least)
    if needs.below < (99, 0):
        told += " to below {}.{}".format(*needs.below)
    lacks = f"{name} has {major}.{minor}"
    if needs.at_least <= capability < needs.below:
        told, lacks = "needs CUDA {}.{}".format(*needs.cuda), "torch is built with {}.{}".format(*cuda)
    raise UserError(f"{SECTION}.fp8_recipe", f"{recipe} {told}, {lacks}", mend)


def _fits(recipe: str, capability: tuple[int, int], cuda: tuple[int, int]) -> bool:
    needs = CARDS[recipe]
    return needs.at_least <= capability < needs.below and cuda >= needs.cuda


def check_products(transformer: Mapping[str, Any], train: TrainSettings, architecture: Architecture) -> None:
    """UserError for a matrix product that FP8 kernels do not take: tokens in eights, widths in sixteens (mxfp8: 32)."""
    recipe = recipe_of(transformer)
    if recipe is None:
        return
    of_tokens, of_widths = (32, 32) if recipe == "mxfp8" else (8, 16)
    tokens = train.micro_batch_size * train.seq_length // train.context_parallel_size
    if tokens % of_tokens:
        problem = f"a product of {tokens} tokens on a rank is no multiple of {of_tokens}"
        raise UserError(f"{SECTION}.fp8", problem, "change train.seq_length or train.micro_batch_size")
    ways, heads = train.tensor_model_parallel_size, architecture.num_attention_heads
    widths = {
        "hidden_size": architecture.hidden_size,
        "ffn_hidden_size": architecture.ffn_hidden_size // ways,
        "num_attention_heads x kv_channels": heads * architecture.kv_channels // ways,
        "queries, keys and values": (heads + 2 * architecture.num_query_groups) * architecture.kv_channels // ways,
    }
    for name, width in widths.items():
        if width % of_widths:
            problem = f"{name}: {width} on a rank, no multiple of {of_widths}"
            raise UserError(f"{SECTION}.fp8", problem, "use a smaller train.tensor_model_parallel_size, or bf16")
