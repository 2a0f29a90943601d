"""On several ranks, 2 processes: models of several families under several layouts, beside what transformers computed.

    torchrun families_worker.py EXPECTED.safetensors OUT.json '{"name": [directory, [layout, ...]], ...}'

EXPECTED has `tokens` [sequence], `segments` [sequence], and NAME and NAME_documents: logits [sequence, vocabulary] of
one document and of those that `segments` tells.  OUT says how far ours are from them, and our gradient's norm.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from megatron_ipt.architecture import check_layout
from megatron_ipt.convert.families import read_architecture
from megatron_ipt.convert.load_hf import load_hf
from megatron_ipt.convert.parity import compare
from megatron_ipt.mcore import config as configs
from megatron_ipt.mcore import model as models
from megatron_ipt.mcore import optimizer as optimizers
from megatron_ipt.mcore import parallel
from megatron_ipt.settings import TrainSettings

LAYOUTS: dict[str, dict[str, Any]] = {
    "whole": {"global_batch_size": 2},
    "tp2_sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "tp2": {"tensor_model_parallel_size": 2},
    "pp2": {"pipeline_model_parallel_size": 2},
    "cp2": {"context_parallel_size": 2},
    "documents": {"global_batch_size": 2, "reset_attention_mask": True},
    "documents_cp2": {"context_parallel_size": 2, "reset_attention_mask": True},
}


def differences(directory: Path, layout: str, name: str, expected: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """How far logits of one forward pass are from transformers', and the norm of one backward pass."""
    tokens = expected["tokens"]
    common: dict[str, Any] = {"global_batch_size": 1, "train_iters": 1, "lr": 1e-3, "bf16": False}
    train = TrainSettings(**{**common, "seq_length": len(tokens), **LAYOUTS[layout]})
    architecture = read_architecture(directory)
    check_layout(architecture, train, dist.get_world_size())
    with parallel.model_parallel(train):
        config = configs.transformer_config(architecture, train)
        chunks = models.build(architecture, config, train, architecture.vocab_size)
        load_hf(chunks, directory, architecture)
        positions = torch.arange(len(tokens))[None]
        mask = torch.ones(1, len(tokens))
        mask[0, -1] = 0
        row = {"tokens": tokens[None], "labels": tokens[None].roll(-1, 1), "position_ids": positions}
        batch = {**row, "loss_mask": mask, "segments": expected["segments"][None]}
        found = models.logits(chunks, batch, train)
        wrapped = models.wrap(chunks, config, train)
        optimizer = optimizers.build(train, wrapped)
        optimizers.zero_grad(optimizer, wrapped)
        models.run_batch(wrapped, lambda: iter([batch]), train, backward=True)
        norm = optimizers.gradient_norm(optimizer)
    if found is None:
        return {}
    parity = compare(found[0], expected[f"{name}_documents" if train.reset_attention_mask else name], tokens)
    return {"dloss": parity.dloss, "max_dlogit": parity.max_dlogit, "norm": norm}


def main() -> None:
    expected, out = load_file(sys.argv[1]), Path(sys.argv[2])
    cases: Mapping[str, tuple[str, Sequence[str]]] = json.loads(sys.argv[3])
    with parallel.distributed():
        told = {
            f"{name} {layout}": differences(Path(directory), layout, name, expected)
            for name, (directory, layouts) in cases.items()
            for layout in layouts
        }
        if dist.get_rank() == dist.get_world_size() - 1:
            out.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
