"""Hugging Face -> checkpoint under a layout -> Hugging Face: the same bits, each rank having read its part alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import torchrun
from safetensors.torch import load_file
from test_families import LLAMA31, save
from transformers import AutoModelForCausalLM

VOCABULARY = 509
"""Megatron pads it: to 512, or to 512 at tensor parallelism 2, as 128 rows are a unit there."""

SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama31": {"model_type": "llama", "rope_parameters": {**LLAMA31, **SCALING}},
    "mistral": {"model_type": "mistral", "sliding_window": 37},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 24},
    # large enough for pages to tell what was read
    "large": {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4},
}
LAYOUTS = {**{name: ["import", "tp2", "pp2"] for name in MODELS}, "large": ["tp2", "pp2"]}
CASES = [f"{name}-{layout}" for name, layouts in LAYOUTS.items() for layout in layouts]
TOKENIZER = {"tokenizer.json": "{}", "tokenizer_config.json": "{}", "spiece.model": "x", "chat_template.jinja": "{{ }}"}
KEPT = {**TOKENIZER, "LICENSE.txt": "free", "generation_config.json": '{"top_p": 0.5}'}
LEFT = {"pytorch_model.bin": "a pickle", "modeling_x.py": "code", "README.md": "of the source"}


@pytest.fixture(scope="module")
def trips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME: what transformers saved; out/NAME-LAYOUT: what came back."""
    folder = tmp_path_factory.mktemp("trips")
    for name, settings in MODELS.items():
        save(folder / name, {**settings, "vocab_size": VOCABULARY})
        for file, content in {**KEPT, **LEFT}.items():
            (folder / name / file).write_text(content, encoding="utf-8")
    (folder / "out").mkdir()
    cases = {name: [str(folder / name), layouts] for name, layouts in LAYOUTS.items()}
    torchrun(2, Path(__file__).with_name("round_trip_worker.py"), json.dumps(cases), folder / "out")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_round_trip_gives_the_same_bits(case: str, trips: Path) -> None:
    source, out = trips / case.split("-")[0], trips / "out" / case
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name]), name
    assert json.loads((out / "config.json").read_text()) == json.loads((source / "config.json").read_text())
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", *KEPT}
    for file, content in KEPT.items():
        assert (out / file).read_text(encoding="utf-8") == content


def test_transformers_reads_what_came_back(trips: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(trips / "tied").state_dict()
    ours = AutoModelForCausalLM.from_pretrained(trips / "out" / "tied-tp2").state_dict()
    assert theirs["lm_head.weight"].shape[0] == VOCABULARY
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())


def read(trips: Path, case: str, unit: str) -> list[int]:
    return [json.loads((trips / "out" / f"{rank}.json").read_text())[case][unit] for rank in range(2)]


def test_each_rank_reads_its_slices_alone(trips: Path) -> None:
    """Both ranks together have each weight once, but for what both hold: norms and, of a tied model, embeddings."""
    for name in MODELS:
        tensors = load_file(trips / name / "model.safetensors")
        whole = sum(tensor.nbytes for tensor in tensors.values())
        twice = sum(tensor.nbytes for key, tensor in tensors.items() if key.endswith("norm.weight"))
        assert sum(read(trips, f"{name}-tp2", "bytes")) == whole + twice
        table = tensors["model.embed_tokens.weight"].nbytes if "lm_head.weight" not in tensors else 0
        assert sum(read(trips, f"{name}-pp2", "bytes")) == whole + table


def test_pages_of_other_stages_are_not_touched(trips: Path) -> None:
    """The kernel's count of what is mapped in; under tensor parallelism it maps more than was asked for."""
    tensors = load_file(trips / "large" / "model.safetensors")
    whole = sum(tensor.nbytes for tensor in tensors.values())
    for pages in read(trips, "large-pp2", "pages"):
        assert 0.4 * whole < pages < 0.6 * whole
