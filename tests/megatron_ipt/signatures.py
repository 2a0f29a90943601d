"""The parameters of every function and class of megatron-core that `megatron_ipt/mcore` names, as JSON.

    python tests/megatron_ipt/signatures.py > tests/megatron_ipt/megatron_signatures.json

makes the snapshot again, after another megatron-core was read or another of its parts is used.  A parameter with a
default ends in `?`.  Configurations are left out: config.py holds each of their fields against its hint in every run.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import megatron_ipt.mcore.shim  # noqa: F401

METHODS = (
    "megatron.core.distributed.DistributedDataParallel.disable_forward_pre_hook",
    "megatron.core.distributed.DistributedDataParallel.enable_forward_pre_hook",
    "megatron.core.distributed.DistributedDataParallel.no_sync",
    "megatron.core.distributed.DistributedDataParallel.offload_grad_buffers",
    "megatron.core.distributed.DistributedDataParallel.restore_grad_buffers",
    "megatron.core.distributed.DistributedDataParallel.start_param_sync",
    "megatron.core.models.common.embeddings.rotary_pos_embedding.RotaryEmbedding._apply_scaling",
    "megatron.core.models.gpt.gpt_model.GPTModel.forward",
    "megatron.core.models.gpt.gpt_model.GPTModel.sharded_state_dict",
    "megatron.core.optimizer.MegatronOptimizer.sharded_state_dict",
    "megatron.core.optimizer.MegatronOptimizer.step",
    "megatron.core.transformer.cuda_graphs.TECudaGraphHelper.capture_finished",
    "megatron.core.transformer.cuda_graphs.TECudaGraphHelper.create_cudagraphs",
    "megatron.core.transformer.cuda_graphs.TECudaGraphHelper.cuda_graph_set_manual_hooks",
    "megatron.core.transformer.cuda_graphs.TECudaGraphHelper.delete_cuda_graphs",
    "megatron.core.transformer.cuda_graphs.TECudaGraphHelper.graphs_created",
)
"""Methods that are called on objects, which no import shows."""

ROOM = Path(__file__).parents[2] / "megatron_ipt" / "mcore"


def names(tree: ast.AST) -> Iterator[str]:
    """Dotted names of megatron-core's parts in a file: those it imports, and what it takes from a module by a dot."""
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("megatron.core"):
            bound |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            bound |= {a.asname: a.name for a in node.names if a.asname and a.name.startswith("megatron.core")}
    yield from bound.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in bound:
            yield f"{bound[node.value.id]}.{node.attr}"


def found_at(name: str) -> Any:
    """The object behind a dotted name; None for one that is not there, as Transformer Engine's without it."""
    module, _, attribute = name.rpartition(".")
    try:
        inside: Any = importlib.import_module(module)
    except ImportError:
        inside = found_at(module)
    if hasattr(inside, attribute):
        return getattr(inside, attribute)
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def parameters(part: Any) -> list[str]:
    of = inspect.signature(part).parameters.values()
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [f"{stars.get(one.kind, '')}{one.name}{'' if one.default is inspect.Parameter.empty else '?'}" for one in of]


def _is_called(name: str, part: Any) -> bool:
    if dataclasses.is_dataclass(part) and name.endswith("Config"):
        return False
    return callable(part) and not (isinstance(part, type) and issubclass(part, BaseException | Enum))


def signatures() -> dict[str, list[str]]:
    told = {name: parameters(found_at(name)) for name in METHODS}
    for file in sorted(ROOM.glob("*.py")):
        for name in names(ast.parse(file.read_text(encoding="utf-8"))):
            part = found_at(name)
            if str(getattr(part, "__module__", "")).startswith("megatron.") and _is_called(name, part):
                told[name] = parameters(part)
    return dict(sorted(told.items()))


if __name__ == "__main__":
    print(json.dumps(signatures(), indent=1))
