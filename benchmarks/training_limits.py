"""What a case needs of a machine, and whether this one has it.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from training_cases import CASES, Case

from data_prep.errors import UserError

LIBRARIES: Final = 2 * 2**30
"""What CUDA, NCCL and Transformer Engine hold themselves, about [bytes]."""
LOGITS: Final = 10
"""Bytes of a logit at the fullest moment: itself in bf16, in fp32, and its gradient in fp32."""


def logits_bytes(case: Case) -> int:
    ways = case.train.get("tensor_model_parallel_size", 1)
    tokens = case.train["micro_batch_size"] * case.train["seq_length"]
    return int(tokens * case.model["vocab_size"] // ways * LOGITS)


def check(name: str, case: Case, machine: Mapping[str, Any], standing: int) -> None:
    """UserError for a case that this machine (`matrix_rate.machine`) cannot run; `standing` bytes are on a rank."""
    where, gpus = f"--case {name}", machine["gpus"]
    if case.gpu and not gpus:
        mend = f"use one of {', '.join(each for each in CASES if not CASES[each].gpu)}, or --dry-run {name}"
        raise UserError(where, "needs a GPU, and there is none here", mend)
    if gpus and case.processes > gpus:
        problem = f"needs {case.processes} GPUs, and there {'is' if gpus == 1 else 'are'} {gpus}"
        raise UserError(where, problem, "use a case of one process, or hide the GPU: CUDA_VISIBLE_DEVICES=")
    if case.needs_transformer_engine and not machine["transformer_engine"]:
        what = "FP8 layers" if case.fp8 else "Adam with 16-bit moments"
        without = [each for each, other in CASES.items() if other.gpu and not other.needs_transformer_engine]
        mend = f"install it, or use {' or '.join(without)}"
        raise UserError(where, f"needs Transformer Engine's {what}, and it is not installed", mend)
    if case.fp8 and tuple(machine["capability"]) < (8, 9):
        has = "{}.{}".format(*machine["capability"])
        problem = f"FP8 needs compute capability 8.9, {machine['device']} has {has}"
        raise UserError(where, problem, "use a -bf16 case")
    if gpus and standing > machine["memory_bytes"]:
        has = f"{machine['device']} has {machine['memory_bytes'] / 1e9:.0f}"
        raise UserError(where, f"{standing / 1e9:.0f} GB stand on a card, {has}", "use a case with fewer layers")
