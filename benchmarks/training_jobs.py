"""What each side of a case is told: a recipe, the bare loop's fields, another script's arguments.  Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from training_cases import Case

from data_prep.errors import UserError

OPTIMIZATION: Final = {
    "lr": 1e-4,
    "min_lr": 0.0,
    "weight_decay": 0.1,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "adam_eps": 1e-8,
    "clip_grad": 1.0,
}
"""Of both sides; a recipe's keys and OptimizerConfig's are the same."""
_LAYER: Final = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups")
_OF_TRANSFORMER: Final = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "recompute_granularity",
    "recompute_method",
    "recompute_num_layers",
    "recompute_modules",
)
_BATCH: Final = ("seq_length", "micro_batch_size", "global_batch_size")
_OF_A_RECIPE: Final = (*_BATCH, "hang_seconds", "transformer_config", "optimizer_config", "ddp_config")


def recipe(case: Case, output_dir: Path, blend: Path) -> dict[str, Any]:
    """The recipe of our side."""
    own = {"bf16": True, "train_iters": case.steps, **OPTIMIZATION, "lr_decay_style": "constant", "blend": str(blend)}
    model = {"share_embeddings_and_output_weights": False, **case.model}
    return {"name": "speed", "output_dir": str(output_dir), "model": model, "train": {**own, **case.train}}


@dataclass(frozen=True, slots=True)
class Job:
    """What the bare loop is told: fields of megatron-core's configurations, batches, and where the tokens lie."""

    layers: str
    vocab_size: int
    tied: bool
    rotary_base: float
    seq_length: int
    micro_batch_size: int
    global_batch_size: int
    steps: int
    transformer_config: dict[str, Any]
    optimizer_config: dict[str, Any]
    ddp_config: dict[str, Any]
    tokens: str
    token_bytes: int
    seed: int = 1234


def job(case: Case, layers: str, tokens: Path, token_bytes: int = 2) -> Job:
    """The bare loop's side of `case`; `layers` is transformer_engine or local.

    What FP8 asks of the other two configurations is written out: megatron-core derives nothing.
    """
    train, free = case.train, case.train.get("transformer_config", {})
    unknown = set(train) - {*_OF_TRANSFORMER, *_OF_A_RECIPE}
    if unknown:
        raise UserError(f"train.{min(unknown)}", "the bare loop has no such setting", "leave it out")
    sizes: dict[str, Any] = {name: value for name, value in case.model.items() if name in _LAYER}
    layout: dict[str, Any] = {name: train[name] for name in _OF_TRANSFORMER if name in train}
    optimizer = {**OPTIMIZATION, **train.get("optimizer_config", {})}
    ddp = {**train.get("ddp_config", {})}
    if case.fp8:
        optimizer["fp8_recipe"] = free["fp8_recipe"]
        if free.get("fp8_param"):
            ddp["fp8_param_gather"] = True
    return Job(
        layers=layers,
        vocab_size=case.model["vocab_size"],
        tied=case.model.get("share_embeddings_and_output_weights", False),
        rotary_base=case.model["rotary_base"],
        steps=case.steps,
        transformer_config={**sizes, **layout, **free},
        optimizer_config=optimizer,
        ddp_config=ddp,
        tokens=str(tokens),
        token_bytes=token_bytes,
        **{name: train[name] for name in _BATCH},
    )


def script_arguments(case: Case) -> list[str]:
    """What the `train.py` of --bare is told; UserError for a case that it has no options for."""
    extra = set(case.train) - {*_BATCH, "tensor_model_parallel_size", "pipeline_model_parallel_size"}
    if extra or case.model.get("share_embeddings_and_output_weights"):
        what = min(extra, default="tied embeddings")
        raise UserError("--bare", f"its train.py has no {what}", "leave --bare out: the loop of this folder has it")
    names = ("layers", "hidden", "ffn", "heads", "kv_heads")
    size = {short: case.model[name] for short, name in zip(names, _LAYER, strict=True)}
    size |= {"vocab": case.model["vocab_size"], "seq": case.train["seq_length"]}
    ways = {"tp": "tensor_model_parallel_size", "pp": "pipeline_model_parallel_size"}
    layout = [f"--{short}={case.train[name]}" for short, name in ways.items() if name in case.train]
    batch = [f"--gbs={case.train['global_batch_size']}", f"--mbs={case.train['micro_batch_size']}"]
    return [f"--size={json.dumps(size)}", *layout, *batch, f"--steps={case.steps}", "--bf16", "--dist-opt"]


def products(case: Case) -> list[tuple[int, int, int, int]]:
    """The forward matrix products of the model as a rank has them: [tokens, in] x [in, out], and how often each is."""
    ways = case.train.get("tensor_model_parallel_size", 1)
    tokens = case.train["micro_batch_size"] * case.train["seq_length"]
    layers, hidden, ffn, heads, groups = (case.model[name] for name in _LAYER)
    width = hidden // heads
    return [
        (tokens, hidden, (heads + 2 * groups) * width // ways, layers),
        (tokens, hidden // ways, hidden, layers),
        (tokens, hidden, 2 * ffn // ways, layers),
        (tokens, ffn // ways, hidden, layers),
        (tokens, hidden, case.model["vocab_size"] // ways, 1),
    ]
