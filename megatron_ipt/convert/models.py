"""Any trained model opened in one process: a Hugging Face directory or a checkpoint, as megatron-core chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_ipt.architecture import Architecture, padded_vocab_size
from megatron_ipt.convert.families import read_architecture
from megatron_ipt.convert.load_hf import load_hf
from megatron_ipt.mcore import checkpoint as checkpoints
from megatron_ipt.mcore import config as configs
from megatron_ipt.mcore import model as models
from megatron_ipt.mcore import parallel
from megatron_ipt.settings import ModelSettings, TrainSettings


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model with its weights in, whole on this process."""

    architecture: Architecture
    chunks: Sequence[torch.nn.Module]
    train: TrainSettings
    vocab_size: int


def is_checkpoint(path: Path) -> bool:
    return not (path / "config.json").exists()


def single_process(seq_length: int, *, bf16: bool) -> TrainSettings:
    """Settings under which one process holds the whole model."""
    return TrainSettings(
        global_batch_size=1, seq_length=seq_length, train_iters=1, lr=1.0, bf16=bf16, use_distributed_optimizer=False
    )


@contextmanager
def open_model(path: Path, *, bf16: bool, seq_length: int = 512) -> Iterator[OpenModel]:
    """Read `path` into one process; UserError where it is neither kind of directory."""
    train = single_process(seq_length, bf16=bf16)
    with parallel.distributed(), parallel.model_parallel(train):
        if is_checkpoint(path):
            folder = checkpoints.resolve(path)
            card = checkpoints.RunCard.read(folder)
            architecture, vocab_size = card.architecture, card.padded_vocab_size
            chunks = models.build(architecture, configs.transformer_config(architecture, train), train, vocab_size)
            checkpoints.load(folder, chunks, None)
        else:
            architecture = read_architecture(path)
            vocab_size = padded_vocab_size(architecture, ModelSettings(), train)
            chunks = models.build(architecture, configs.transformer_config(architecture, train), train, vocab_size)
            load_hf(chunks, path, architecture)
        yield OpenModel(architecture, chunks, train, vocab_size)
