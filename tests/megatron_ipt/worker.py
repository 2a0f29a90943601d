"""Run by torchrun: several training runs in one process group, each its own layout.

    torchrun worker.py RECIPE OUT.json '{"name": ["train.tensor_model_parallel_size=2", ...], ...}'

An override `swap_heads` puts two query heads of every layer in each other's place while weights are loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recorded import run_jobs, trained


def run(recipe: Path, overrides: list[str]) -> Any:
    from megatron_ipt.convert import load_hf

    fuse = load_hf.fuse_qkv
    if "swap_heads" in overrides:

        def swapped(query: Any, key: Any, value: Any, width: int) -> Any:
            order = [*range(width, 2 * width), *range(width), *range(2 * width, len(query))]
            return fuse(query[order], key, value, width)

        load_hf.fuse_qkv = swapped
    try:
        return trained(recipe, [item for item in overrides if "=" in item])
    finally:
        load_hf.fuse_qkv = fuse


def ask_transformers_once() -> None:
    """For each model, page and precision: its process takes longer than all else of a gate."""
    from megatron_ipt.convert import parity

    ask, known = parity.transformers_outputs, dict[Any, Any]()

    def outputs(directory: Path, tokens: Any, precision: Any = "float32") -> Any:
        key = (directory, tuple(tokens.tolist()), precision)
        if key not in known:
            known[key] = ask(directory, tokens, precision)
        return known[key]

    parity.transformers_outputs = outputs


if __name__ == "__main__":
    ask_transformers_once()
    run_jobs(run)
