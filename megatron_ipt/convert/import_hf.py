"""A Hugging Face directory as a sharded checkpoint that any layout loads."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from megatron_ipt.convert.families import read_architecture
from megatron_ipt.convert.models import open_model
from megatron_ipt.mcore import checkpoint as checkpoints


def import_hf(directory: Path, out: Path, *, bf16: bool = True) -> Path:
    """Write the weights of `directory` to OUT/iter_0000000; a run starts from it with train.load and train.finetune."""
    read_architecture(directory)
    with open_model(directory, bf16=bf16) as opened:
        chunks = [chunk.bfloat16() for chunk in opened.chunks] if bf16 else opened.chunks
        card = checkpoints.RunCard(
            iteration=0,
            consumed_samples=0,
            architecture=opened.architecture,
            padded_vocab_size=opened.vocab_size,
            blend_hash="",
            load_hf=str(directory),
            versions={name: version(name) for name in ("torch", "megatron-core", "instruction-pretraining")},
            recipe={},
        )
        return checkpoints.save(out, card, chunks, None)
