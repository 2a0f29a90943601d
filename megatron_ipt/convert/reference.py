"""The other side of the comparison: transformers' logits on a fixed page, computed in a process of its own.

A process of its own because an oracle must not share anything with what it judges, least of all the CPU shim
of `megatron_ipt.mcore`, and because its memory is given back when it ends.

    python -m megatron_ipt.convert.reference HF_DIRECTORY TOKENS.safetensors LOGITS.safetensors
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

import torch

from data_prep.errors import UserError

TOKENS = 512


def fixed_tokens(directory: Path, vocab_size: int, count: int = TOKENS) -> torch.Tensor:
    """`count` token ids of the fixed page; of a directory without a tokenizer, a fixed walk over the vocabulary."""
    file = directory / "tokenizer.json"
    if not file.exists():
        return torch.arange(count) * 7919 % vocab_size
    from tokenizers import Tokenizer

    text = resources.files("megatron_ipt.convert").joinpath("parity_text.txt").read_text(encoding="utf-8")
    ids = Tokenizer.from_file(str(file)).encode(text, add_special_tokens=False).ids
    return torch.tensor((ids * -(-count // len(ids)))[:count])


def transformers_logits(directory: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [tokens, vocabulary] of transformers' own model of `directory`, in fp32 on the CPU."""
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder, "tokens.safetensors"), Path(folder, "logits.safetensors")
        save_file({"tokens": tokens}, question)
        command = [sys.executable, "-m", "megatron_ipt.convert.reference", str(directory), str(question), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
            raise UserError(directory, f"transformers does not load it ({last[0]})", "give a whole directory")
        return load_file(answer)["logits"]


def main(directory: str, question: str, answer: str) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    tokens = load_file(question)["tokens"]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        save_file({"logits": model(tokens[None]).logits[0].contiguous()}, answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
