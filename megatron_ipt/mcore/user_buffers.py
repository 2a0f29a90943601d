"""Tensor-parallel communication behind matrix products: the buffers that Transformer Engine needs for it.

`train.transformer_config.tp_comm_overlap` (with its `tp_comm_overlap_ag`, ... beside it) turns it on in the layers;
without buffers, made once before the first forward pass, those would fail.  `train.tp_comm_overlap_cfg` is the YAML of
Megatron-LM: for a product such as `qkv_fprop` its `method`, `num_sm` and so on; what it leaves out is chosen by
Transformer Engine.  Names and rules are those of transformer_engine/pytorch/module/base.py (2.20).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from data_prep.errors import UserError
from megatron_ipt.mcore.contradiction import Contradiction
from megatron_ipt.settings import TrainSettings

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig

KEY: Final = "train.transformer_config.tp_comm_overlap"
FILE: Final = "train.tp_comm_overlap_cfg"

METHODS: Final = {
    **dict.fromkeys(("qkv_fprop", "fc1_fprop", "proj_dgrad", "fc2_dgrad"), ("ring_exchange",)),
    **dict.fromkeys(("proj_fprop", "fc2_fprop"), ("pipeline", "ring_exchange")),
    **dict.fromkeys(("qkv_dgrad", "fc1_dgrad"), ("bulk", "ring_exchange", "pipeline")),
    **dict.fromkeys(("qkv_wgrad", "fc1_wgrad"), ("bulk",)),
    **dict.fromkeys(("proj_wgrad", "fc2_wgrad"), ("external",)),
}
"""Products of a layer, and how each can be overlapped; the first is Transformer Engine's choice."""

OPTIONS: Final[dict[str, type]] = {
    "method": str,
    **dict.fromkeys(("num_sm", "cga_size", "num_splits", "comm_priority", "gemm_priority"), int),
    **dict.fromkeys(("is_reduce_scatter", "set_sm_margin", "aggregate", "atomic_gemm", "use_ce", "fp8_buf"), bool),
    "pipeline_rs_overlap_first_gemm": bool,
}


def contradictions(train: TrainSettings) -> Iterator[Contradiction]:
    wanted = train.transformer_config.get("tp_comm_overlap")
    if wanted and not train.sequence_parallel:
        mend = "set train.sequence_parallel: true and train.tensor_model_parallel_size above 1"
        yield Contradiction(KEY, "overlaps what sequence parallelism sends, and there is none", mend)
    if wanted and train.micro_batch_size * train.seq_length // train.context_parallel_size % (
        train.tensor_model_parallel_size
    ):
        ways = train.tensor_model_parallel_size
        yield Contradiction(KEY, f"a micro batch's tokens on a rank do not divide by {ways}", "change train.seq_length")
    if wanted and not train.bf16:
        yield Contradiction(KEY, "has buffers of bf16 or FP8, and train.bf16 is false", "set train.bf16: true")
    if train.tp_comm_overlap_cfg is not None and not wanted:
        mend = "set train.transformer_config.tp_comm_overlap: true"
        yield Contradiction(FILE, "says how communication is overlapped, and it is not", mend)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Megatron-LM's `--tp-comm-overlap-cfg`.  UserError for what Transformer Engine does not have."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(path, f"cannot be read as YAML ({error})".replace("\n", " "), "give another file") from error
    if not isinstance(found, dict):
        raise UserError(path, "holds no mapping", f"name products: {', '.join(METHODS)}")
    for product, options in found.items():
        if product not in METHODS:
            raise UserError(f"{path}: {product}", "is no product of a layer", f"use {', '.join(METHODS)}")
        if not isinstance(options, dict):
            raise UserError(f"{path}: {product}", "holds no options", f"use {', '.join(OPTIONS)}")
        for option, value in options.items():
            _check(path, product, option, value)
    for product in ("qkv", "fc1"):
        dgrad, wgrad = f"{product}_dgrad", f"{product}_wgrad"
        if found.get(dgrad, {}).get("method", "bulk") != "bulk" and wgrad in found:
            raise UserError(f"{path}: {wgrad}", f"goes with a bulk {dgrad} only", f"leave out {wgrad}, or {dgrad}")
    return found


def check_scatter(path: Path, found: Mapping[str, Mapping[str, Any]], own: Mapping[str, Any]) -> None:
    """UserError where file and layers differ on how the gradient of an input is scattered.

    `own`: train.transformer_config.  A layer that expects `bulk` would be given a buffer of another kind, or reversed.
    """
    for product in ("qkv", "fc1"):
        scatters = bool(own.get("tp_comm_overlap_rs_dgrad")) and not own.get(f"tp_comm_overlap_disable_{product}")
        method = found.get(f"{product}_dgrad", {}).get("method", "bulk")
        if scatters and method == "bulk":
            problem = f"tp_comm_overlap_rs_dgrad is set, and {product}_dgrad is bulk"
            raise UserError(path, problem, f"give {product}_dgrad a method of ring_exchange or pipeline")
        if not scatters and method != "bulk":
            problem = f"{product}_dgrad is {method}, and the layers scatter it in bulk"
            mend = "set train.transformer_config.tp_comm_overlap_rs_dgrad: true, or use bulk"
            raise UserError(path, problem, mend)


def of_each_mode(found: Mapping[str, dict[str, Any]], count: int) -> list[dict[str, dict[str, Any]]]:
    """`found` for each of `count` formats.

    Transformer Engine moves a product to its own method once for all formats and fails where a second one names it.
    """
    moved = {
        product: {option: value for option, value in options.items() if option != "method"}
        if product.endswith("_dgrad") and METHODS[product][0] == "bulk"
        else options
        for product, options in found.items()
    }
    return [dict(found), *[moved] * (count - 1)]


def _check(path: Path, product: str, option: str, value: Any) -> None:
    where = f"{path}: {product}.{option}"
    if option not in OPTIONS:
        raise UserError(where, "is no option", f"use {', '.join(OPTIONS)}")
    kind = OPTIONS[option]
    if kind is bool and type(value) is int and value in (0, 1):
        return  # as NVIDIA's own files write it
    if type(value) is not kind:
        words = {str: "a word", int: "a whole number", bool: "true or false"}
        raise UserError(where, f"{value!r} is not legal", f"use {words[kind]}")
    if option == "method" and value not in METHODS[product]:
        raise UserError(where, f"{value} does not fit this product", f"use {' or '.join(METHODS[product])}")


def shape(train: TrainSettings, hidden_size: int) -> list[int]:
    """Of a buffer: a micro batch's tokens on a context-parallel rank, and the model's width."""
    return [train.seq_length * train.micro_batch_size // train.context_parallel_size, hidden_size]


def modes(train: TrainSettings) -> list[str]:
    """Formats in which layers send: of `FP8` and `NONE`, the latter for bf16 layers and steps without FP8 too."""
    own = train.transformer_config
    if not own.get("fp8"):
        return ["NONE"]
    at_ends = [own.get(f"num_layers_at_{end}_in_bf16", 1) for end in ("start", "end")]
    some_in_bf16 = bool(own.get("first_last_layers_bf16")) and any(at_ends)
    return ["FP8", "NONE"] if some_in_bf16 or train.fp8_shadow_interval is not None else ["FP8"]


def allocate(config: TransformerConfig, train: TrainSettings) -> bool:
    """Make the buffers if the layers overlap; whether they do.  All ranks call it, before a forward pass."""
    if not config.tp_comm_overlap:
        return False
    base = importlib.import_module("transformer_engine.pytorch.module.base")
    found = read(train.tp_comm_overlap_cfg) if train.tp_comm_overlap_cfg else {}
    check_scatter(train.tp_comm_overlap_cfg or Path(FILE), found, train.transformer_config)
    try:
        base.initialize_ub(
            shape=shape(train, config.hidden_size),
            tp_size=train.tensor_model_parallel_size,
            quantization_modes=[base.UserBufferQuantizationMode[mode] for mode in modes(train)],
            ub_cfgs=of_each_mode(found, len(modes(train))),
            bootstrap_backend=train.tp_comm_bootstrap_backend,
        )
    except (RuntimeError, ValueError, KeyError) as error:
        line = str(error).strip().splitlines()[-1]
        raise UserError(KEY, f"Transformer Engine makes no buffers: {line}", "leave tp_comm_overlap out") from error
    return True


def free() -> None:
    importlib.import_module("transformer_engine.pytorch.module.base").destroy_ub()
