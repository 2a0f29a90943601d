"""What CUDA graphs of layers forbid and need.  Pure; the capture is in graphs.py.

The keys are megatron-core's, under `train.transformer_config`: `cuda_graph_impl` (`local`: megatron-core captures in
the first step by itself; `transformer_engine`: captured after `cuda_graph_warmup_steps` steps) and `cuda_graph_modules`
(parts of a layer; none: whole layers).  A graph replays the kernels of its capture, so shapes, addresses and number
formats have to stay: what would change one of them is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from data_prep.errors import UserError
from megatron_ipt.mcore.contradiction import Contradiction
from megatron_ipt.settings import TrainSettings

IMPL: Final = "train.transformer_config.cuda_graph_impl"
ALLOCATORS: Final = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Names of the setting, the second of torch 2.9 and later."""
OF_ATTENTION: Final = ("attn", "full")
"""Modules whose capture has attention in it."""
MODULES: Final = ("mlp", *OF_ATTENTION)
"""The modules that a layer of ours has."""


def implementation(train: TrainSettings) -> str:
    """`none`, `local`, `transformer_engine` or `full_iteration`."""
    return train.transformer_config.get("cuda_graph_impl") or "none"


def contradictions(train: TrainSettings) -> Iterator[Contradiction]:
    """What cannot go on while graphs are replayed."""
    own, kind = train.transformer_config, implementation(train)
    if kind == "none":
        for key in ("cuda_graph_modules", "cuda_graph_warmup_steps"):
            if key in own:
                problem = "says how graphs are captured, and there are none"
                yield Contradiction(f"train.transformer_config.{key}", problem, "set cuda_graph_impl beside it")
        return
    if unknown := [module for module in _modules(own) if module not in MODULES]:
        problem = f"{unknown[0]} is no part of these layers"
        mend = "use a list of attn and mlp, or leave it out for whole layers"
        yield Contradiction("train.transformer_config.cuda_graph_modules", problem, mend)
    if kind == "full_iteration":
        problem = "would put the losses of each source, which are told on the host, into the graph"
        yield Contradiction(IMPL, problem, "use transformer_engine, or local")
    if kind == "transformer_engine" and not train.bf16:
        yield Contradiction(IMPL, "captures layers with bf16 inputs, and train.bf16 is false", "set train.bf16: true")
    if own.get("cuda_graph_warmup_steps", 3) < 1:
        problem = "weights are gathered for the first time in the first step, which must come before the capture"
        yield Contradiction("train.transformer_config.cuda_graph_warmup_steps", problem, "use 1 or more")
    if train.reset_attention_mask and _has_attention(own):
        problem = "each batch has its documents elsewhere, and a graph has them where they were at its capture"
        yield Contradiction(IMPL, problem, "use cuda_graph_modules: [mlp], or train.reset_attention_mask: false")
    if train.fp8_shadow_interval is not None:
        problem = "a captured layer computes in FP8 always, so it cannot be compared with itself without FP8"
        yield Contradiction(IMPL, problem, "leave out train.fp8_shadow_interval, or the graphs")
    if train.pipeline_model_parallel_size > 1 and len(set(train.batch_sizes.sizes)) > 1:
        problem = "under pipeline parallelism each micro batch of a step has its own graph, and their number grows"
        yield Contradiction(IMPL, problem, "use one batch size, or begin with graphs after the ramp")


def _modules(own: Mapping[str, Any]) -> list[Any]:
    given = own.get("cuda_graph_modules") or ()
    return given.split(",") if isinstance(given, str) else list(given)


def _has_attention(own: Mapping[str, Any]) -> bool:
    modules = _modules(own)
    return not modules or any(module in OF_ATTENTION for module in modules)


def check_environment(train: TrainSettings, environment: Mapping[str, str]) -> None:
    """UserError where NCCL would register the addresses of graphs that the allocator moves (megatron-core's check)."""
    moving = [name for name in ALLOCATORS if "expandable_segments:True" in environment.get(name, "")]
    if implementation(train) == "transformer_engine" and moving and environment.get("NCCL_GRAPH_REGISTER") != "0":
        problem = f"{moving[0]}=expandable_segments:True with NCCL_GRAPH_REGISTER unset reads memory that has moved"
        raise UserError(IMPL, problem, "set NCCL_GRAPH_REGISTER=0 in the environment")


def generators(train: TrainSettings, layers: str) -> dict[str, bool]:
    """Arguments of `model_parallel_cuda_manual_seed`: random numbers that a graph can draw anew at each replay."""
    if implementation(train) == "none":
        return {}
    engine = "transformer_engine" in (layers, implementation(train))
    return {"te_rng_tracker": True} if engine else {"use_cudagraphable_rng": True}
