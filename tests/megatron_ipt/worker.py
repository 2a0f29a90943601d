"""On several ranks: several training runs in one process group, each its own layout.

    torchrun worker.py RECIPE OUT.json '{"name": ["train.tensor_model_parallel_size=2", ...], ...}' ['{alone}']

A job gives its rows of metrics and one of kind `built`: what this rank made of the layout, if it made a step.  An
override `swap_heads` puts two query heads of every layer in each other's place while weights are loaded.  Jobs of a
second object are run by the first process alone, in a group of one, when the others are done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recorded import run_jobs, trained


@contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """What the first step has: layers and their calls, the shape of what enters them, the optimizer's numbers."""
    from megatron_ipt import pretrain
    from megatron_ipt.mcore import model as models

    step, built = pretrain.training_step, dict[str, Any]()

    def first(run: Any, loader: Any) -> Any:
        if built:
            return step(run, loader)
        layers = [layer for chunk in run.chunks for layer in models.unwrap(chunk).decoder.layers]
        calls, shapes = Counter[str](), set[tuple[int, ...]]()
        hooks = []
        for layer in layers:
            for name, part in (
                ("layer", layer),
                ("core_attn", layer.self_attention.core_attention),
                ("mlp", layer.mlp),
            ):
                hooks.append(part.register_forward_pre_hook(lambda *_, name=name: calls.update([name])))
            hooks.append(layer.mlp.register_forward_pre_hook(lambda _, inputs: shapes.add(tuple(inputs[0].shape))))
        done = step(run, loader)
        for hook in hooks:
            hook.remove()
        groups = run.optimizer.param_groups
        built.update(
            chunks=[len(models.unwrap(chunk).decoder.layers) for chunk in run.chunks],
            layers=[layer.layer_number for layer in layers],
            calls=dict(calls),
            shapes=sorted(shapes),
            weights=sum(weight.numel() for chunk in run.chunks for weight in chunk.parameters()),
            updated=sum(weight.numel() for group in groups for weight in group["params"]),
            overlap=[run.chunks[0].ddp_config.overlap_grad_reduce, run.chunks[0].ddp_config.overlap_param_gather],
        )
        return done

    pretrain.training_step = first
    try:
        yield built
    finally:
        pretrain.training_step = step


def run(recipe: Path, overrides: list[str]) -> Any:
    from megatron_ipt.convert import load_hf

    fuse = load_hf.fuse_qkv
    if "swap_heads" in overrides:

        def swapped(query: Any, key: Any, value: Any, width: int) -> Any:
            order = [*range(width, 2 * width), *range(width), *range(2 * width, len(query))]
            return fuse(query[order], key, value, width)

        load_hf.fuse_qkv = swapped
    try:
        with watched() as built:
            rows = trained(recipe, [item for item in overrides if "=" in item])
        return [*rows, {"kind": "built", **built}] if built else rows
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
