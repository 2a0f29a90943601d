"""A Hugging Face directory as a sharded checkpoint that any layout loads; memory does not grow with its layers.

It is `load_hf` under one process, but that no model holds the weights: each is read when the writer asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from megatron_ipt.architecture import Architecture, padded_vocab_size
from megatron_ipt.convert import parts
from megatron_ipt.convert.families import read_architecture
from megatron_ipt.convert.load_hf import read_weight
from megatron_ipt.convert.models import single_process
from megatron_ipt.convert.safetensors_directory import SafetensorsDirectory
from megatron_ipt.convert.unread import check_unread
from megatron_ipt.mcore import checkpoint as checkpoints
from megatron_ipt.mcore import config as configs
from megatron_ipt.mcore import model as models
from megatron_ipt.mcore import parallel
from megatron_ipt.settings import ModelSettings


def import_hf(directory: Path, out: Path, *, bf16: bool = True) -> Path:
    """Write the weights of `directory` to OUT/iter_0000000; a run starts from it with train.load and train.finetune."""
    architecture = read_architecture(directory)
    source = SafetensorsDirectory(directory)
    # Transformer Engine's layers hold the same weights, but none of them on the meta device
    train = single_process(2, bf16=bf16).model_copy(update={"transformer_impl": "local"})
    vocab_size = padded_vocab_size(architecture, ModelSettings(), train)
    with parallel.distributed(), parallel.model_parallel(train):
        config = configs.transformer_config(architecture, train)
        (chunk,) = models.build(architecture, config, train, vocab_size, place="meta")
        check(source, {name: tuple(weight.shape) for name, weight in models.named_parameters([chunk])}, architecture)

        def make(name: str, shape: tuple[int, ...]) -> torch.Tensor:
            return read_weight(source, name, shape, architecture)

        card = checkpoints.RunCard(
            iteration=0,
            consumed_samples=0,
            architecture=architecture,
            padded_vocab_size=vocab_size,
            blend_hash="",
            load_hf=str(directory.absolute()),
            versions={name: version(name) for name in ("torch", "megatron-core", "instruction-pretraining")},
            recipe={},
        )
        return checkpoints.save_made(out, card, chunk, make)


def check(source: SafetensorsDirectory, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> None:
    """UserError, before anything is written, for a tensor that is missing, of another shape, or that we would drop."""
    wanted: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        wanted |= parts.shapes(name, shape, architecture)
    for name, shape in wanted.items():
        source.slice(name, shape)
    check_unread(source, wanted.keys(), architecture)
