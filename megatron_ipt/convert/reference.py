"""The other side of the comparison: transformers' logits on a fixed page, computed in a process of its own.

A process of its own because an oracle must not share anything with what it judges, least of all the CPU shim
of `megatron_ipt.mcore`, and because its memory is given back when it ends.

    python -m megatron_ipt.convert.reference HF_DIRECTORY TOKENS.safetensors OUT.safetensors float32|bfloat16 [states]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch

from data_prep.errors import UserError
from megatron_ipt.settings import TrainSettings

Precision = Literal["float32", "bfloat16"]
TOKENS = 512


def count_for(train: TrainSettings) -> int:
    """TOKENS, or as many more as the layout divides: sequence parallelism cuts in TP parts, context in 2 x CP."""
    parts = train.tensor_model_parallel_size * 2 * train.context_parallel_size
    return -(-TOKENS // parts) * parts


def fixed_tokens(directory: Path, vocab_size: int, count: int = TOKENS) -> torch.Tensor:
    """`count` token ids of the fixed page; of a directory without a tokenizer, a fixed walk over the vocabulary.

    UserError where the tokenizer has tokens that a model of `vocab_size` has no row for.
    """
    file = directory / "tokenizer.json"
    if not file.exists():
        return torch.arange(count) * 7919 % vocab_size
    text = resources.files("megatron_ipt.convert").joinpath("parity_text.txt").read_text(encoding="utf-8")
    ids = open_tokenizer(file).encode(text, add_special_tokens=False).ids
    page = (ids * -(-count // max(len(ids), 1)))[:count]
    if not page or max(page) >= vocab_size:
        problem = f"gives token {max(page, default=None)}, and the model has a vocabulary of {vocab_size}"
        raise UserError(file, problem, "give model and tokenizer of one kind")
    return torch.tensor(page)


def open_tokenizer(file: Path) -> Any:
    """A `tokenizers.Tokenizer`; UserError where the file is none."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(file, f"is no tokenizer ({error})", "copy the directory again") from error


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model makes of tokens, in fp32 on the CPU.

    `logits` [tokens, vocabulary]; `states` [1 + layers, tokens, hidden]: after the embedding and after each layer, or
    none where they were not asked for.
    """

    logits: torch.Tensor
    states: torch.Tensor | None = None


@contextmanager
def watched(modules: Sequence[torch.nn.Module]) -> Iterator[list[torch.Tensor]]:
    """What `modules` give within, one after another, of one sequence: [tokens, hidden], fp32, on the CPU."""
    found: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        found.append(tensor.detach().reshape(-1, tensor.shape[-1]).float().cpu())

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def transformers_outputs(
    directory: Path, tokens: torch.Tensor, precision: Precision = "float32", *, states: bool = False
) -> Outputs:
    """What transformers' own model of `directory` makes of `tokens`, computed in `precision` on the CPU."""
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder, "tokens.safetensors"), Path(folder, "outputs.safetensors")
        save_file({"tokens": tokens}, question)
        arguments = [str(directory), str(question), str(answer), precision, *(["states"] if states else [])]
        command = [sys.executable, "-m", "megatron_ipt.convert.reference", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
            raise UserError(directory, f"transformers does not load it ({last[0]})", "give a whole directory")
        return Outputs(**load_file(answer))


def main(directory: str, question: str, answer: str, precision: str, states: str = "") -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    tokens = load_file(question)["tokens"]
    dtype = getattr(torch, precision)
    # from outside, no pickle is opened: without this flag transformers reads pytorch_model.bin
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, local_files_only=True, use_safetensors=True)
    model.eval()
    layers = [model.model.embed_tokens, *model.model.layers] if states else []
    with torch.no_grad(), watched(layers) as found:
        outputs = {"logits": model(tokens[None]).logits[0].float().contiguous()}
    save_file({**outputs, "states": torch.stack(found)} if found else outputs, answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
