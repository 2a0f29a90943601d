"""The other side of the parity gate: the page it reads, and what it does not open."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from conftest import with_byte_tokenizer
from safetensors.torch import load_file, save_file
from test_families import save

from data_prep.errors import UserError
from megatron_ipt.convert import reference
from megatron_ipt.settings import TrainSettings


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"tensor_model_parallel_size": 3, "sequence_parallel": True, "seq_length": 1023},
        {"context_parallel_size": 3, "seq_length": 96},
        {"tensor_model_parallel_size": 5, "context_parallel_size": 7, "seq_length": 70},
    ],
)
def test_the_page_is_as_long_as_the_layout_divides(layout: dict[str, int]) -> None:
    """Sequence parallelism cuts it into TP parts, context parallelism into 2 x CP: of 512 tokens 3 parts are not."""
    settings = {"global_batch_size": 1, "seq_length": 64, "train_iters": 1, "lr": 1.0, **layout}
    count = reference.count_for(TrainSettings(**settings))  # type: ignore[arg-type]
    assert 512 <= count < 600
    parts = layout.get("tensor_model_parallel_size", 1) * layout.get("context_parallel_size", 1)
    assert count % parts == 0
    assert count % (2 * layout.get("context_parallel_size", 1)) == 0
    assert layout or count == 512


def test_a_tokenizer_with_more_tokens_than_the_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    with_tokenizer = with_byte_tokenizer(tmp_path / "hf", tmp_path / "bytes")
    ids = reference.fixed_tokens(with_tokenizer, 257)
    assert (len(ids), int(ids.max()) < 257) == (512, True)
    highest = int(ids.max())
    assert len(reference.fixed_tokens(with_tokenizer, highest + 1)) == 512
    with pytest.raises(UserError, match=f"gives token {highest}, and the model has a vocabulary of {highest}"):
        reference.fixed_tokens(with_tokenizer, highest)
    (with_tokenizer / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="is no tokenizer"):
        reference.fixed_tokens(with_tokenizer, 257)


def test_weights_in_a_pickle_are_not_opened(tmp_path: Path) -> None:
    """transformers takes pytorch_model.bin where there is nothing else; what a file from outside runs is not known."""
    save(tmp_path, {"model_type": "llama"})
    question, answer = tmp_path / "tokens.safetensors", tmp_path / "out.safetensors"
    save_file({"tokens": torch.arange(8)}, question)
    reference.main(str(tmp_path), str(question), str(answer), "float32")
    assert load_file(answer)["logits"].shape == (8, 512)
    weights = tmp_path / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "pytorch_model.bin", pickle_module=pickle)
    weights.unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        reference.main(str(tmp_path), str(question), str(answer), "float32")
