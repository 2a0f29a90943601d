"""What Transformer Engine says of itself, as JSON: the oracle of the tables in megatron_ipt/mcore that are about it.

    python tests/engine/engine_facts.py > tests/megatron_ipt/transformer_engine_facts.json

remakes the snapshot where Transformer Engine is installed; it imports, and answers all of this, without a GPU.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from collections.abc import Iterator
from typing import Any

import torch
import transformer_engine
from transformer_engine.pytorch import quantization
from transformer_engine.pytorch.optimizers import FusedAdam

base = importlib.import_module("transformer_engine.pytorch.module.base")

CARDS = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)]
CUDA = ["12.8", "12.9", "13.0"]
SUPPORT = {"delayed": "fp8", "tensorwise": "fp8", "blockwise": "fp8_block_scaling", "mxfp8": "mxfp8"}


def support() -> dict[str, list[list[Any]]]:
    """For each recipe the [capability, CUDA] that Transformer Engine takes."""
    told: dict[str, list[list[Any]]] = {recipe: [] for recipe in SUPPORT}
    for card in CARDS:
        quantization.get_device_compute_capability = lambda card=card: card
        for torch.version.cuda in CUDA:
            for recipe, name in SUPPORT.items():
                if getattr(quantization, f"_compute_{name}_support")()[0]:
                    told[recipe].append([list(card), torch.version.cuda])
    return told


def nodes(part: Any, kind: type[ast.AST]) -> Iterator[Any]:
    tree = ast.parse(inspect.cleandoc(inspect.getsource(part)) if inspect.isfunction(part) else "")
    yield from (node for node in ast.walk(tree) if isinstance(node, kind))


def methods() -> dict[str, list[str]]:
    """Transformer Engine's choice of overlap: method -> products."""
    for node in nodes(base.initialize_ub, ast.Assign):
        if [getattr(target, "id", "") for target in node.targets] == ["methods"]:
            return ast.literal_eval(node.value)  # type: ignore[no-any-return]
    raise SystemExit("initialize_ub has no table `methods` any more")


def options() -> dict[str, str]:
    """What a product's entry may hold, and its type."""
    (add,) = [node for node in nodes(base.initialize_ub, ast.FunctionDef) if node.name == "add_ub"]
    found = {one.arg: ast.unparse(one.annotation) for one in add.args.args if one.annotation}
    return {name: kind for name, kind in found.items() if name not in ("name", "quantization_mode")}


def formats() -> dict[str, list[str]]:
    """FusedAdam's argument -> the formats it takes, from its own checks."""
    source = inspect.cleandoc("\n" + inspect.getsource(FusedAdam.__init__))
    found: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.NotIn) and isinstance(node.left, ast.Name):
            found[node.left.id] = [ast.unparse(one).removeprefix("torch.") for one in node.comparators[0].elts]  # type: ignore[attr-defined]
    return found


def facts() -> dict[str, Any]:
    return {
        "version": transformer_engine.__version__,
        "support": support(),
        "methods": methods(),
        "options": options(),
        "formats": formats(),
        "modes": [mode.name for mode in base.UserBufferQuantizationMode],
        "initialize_ub": list(inspect.signature(base.initialize_ub).parameters),
        "destroy_ub": list(inspect.signature(base.destroy_ub).parameters),
        "adam": list(inspect.signature(FusedAdam).parameters),
    }


if __name__ == "__main__":
    print(json.dumps(facts(), indent=1))
