"""Hugging Face -> checkpoint under a layout -> Hugging Face: the same bits, each rank having read its part alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_ranks
from safetensors.torch import load_file, save_file
from test_families import LLAMA31, save
from transformers import AutoModelForCausalLM

VOCABULARY = 509
"""Megatron pads it: to 512, or to 512 at tensor parallelism 2, as 128 rows are a unit there."""

SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "rope_parameters": {**LLAMA31, **SCALING}},
    "tied": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 37},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 24},
    # large enough for pages to tell what was read
    "large": {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4},
}
LAYOUTS = {**{name: ["import", "tp2", "pp2"] for name in MODELS}, "large": ["tp2", "pp2"]}
LAYOUTS["qwen3"] = ["import", "tp2", "pp2", "scratch", "extra_state"]
CASES = [f"{name}-{layout}" for name, layouts in LAYOUTS.items() for layout in layouts if layout != "scratch"]
CASES.append("qwen3-extra_state_between")
TOKENIZER = {"tokenizer.json": "{}", "tokenizer_config.json": "{}", "spiece.model": "x", "chat_template.jinja": "{{ }}"}
KEPT = {**TOKENIZER, "LICENSE.txt": "free", "generation_config.json": '{"top_p": 0.5}'}
LEFT = {"pytorch_model.bin": "a pickle", "modeling_x.py": "code", "README.md": "of the source"}


BROKEN = {
    "missing": "shard-2.safetensors: tensor 'model.layers.1.mlp.up_proj.weight' is missing, and model.safetensors",
    "truncated": "shard-2.safetensors: not readable as safetensors",
    "further": "tensor 'model.layers.1.self_attn.q_proj.bias' is of no use to a model of family llama",
    "fewer_layers": "tensor 'model.layers.1.input_layernorm.weight' is of no use to a model of 1 layers",
}


def break_second_shard(source: Path, out: Path, fault: str) -> None:
    """The last layer in a shard of its own, which the second of two stages reads alone, and a fault in it."""
    tensors = load_file(source / "model.safetensors")
    if fault == "further":
        tensors["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(64)
    file_of = {name: "shard-2.safetensors" if "layers.1." in name else "shard-1.safetensors" for name in tensors}
    out.mkdir()
    for file in set(file_of.values()):
        part = {name: tensor for name, tensor in tensors.items() if file_of[name] == file}
        if fault == "missing":
            part.pop("model.layers.1.mlp.up_proj.weight", None)
        save_file(part, out / file)
    if fault == "truncated":
        whole = (out / "shard-2.safetensors").read_bytes()
        (out / "shard-2.safetensors").write_bytes(whole[: len(whole) // 2])
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": file_of}), encoding="utf-8")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] -= fault == "fewer_layers"
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.fixture(scope="module")
def trips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME: what transformers saved; out/NAME-LAYOUT: what came back."""
    folder = tmp_path_factory.mktemp("trips")
    for name, settings in MODELS.items():
        save(folder / name, {**settings, "vocab_size": VOCABULARY})
        for file, content in {**KEPT, **LEFT}.items():
            (folder / name / file).write_text(content, encoding="utf-8")
    (folder / "out").mkdir()
    for name in BROKEN:
        break_second_shard(folder / "llama", folder / name, name)
    layouts = {**LAYOUTS, **{name: ["pp2" if name != "fewer_layers" else "tp2"] for name in BROKEN}}
    cases = {name: [str(folder / name), layouts[name]] for name in layouts}
    run_ranks(2, Path(__file__).with_name("round_trip_worker.py"), json.dumps(cases), folder / "out")
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


def test_a_model_from_scratch_has_a_config_and_a_tokenizer_of_its_own(trips: Path) -> None:
    """Its card names no directory: the numbers are the checkpoint's, the tokenizer is the one that was given."""
    source, out = trips / "qwen3", trips / "out" / "qwen3-scratch"
    theirs, ours = (AutoModelForCausalLM.from_pretrained(folder) for folder in (source, out))
    tokens = torch.arange(64)[None] % VOCABULARY
    with torch.no_grad():
        assert torch.equal(theirs(tokens).logits, ours(tokens).logits)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert (config["bos_token_id"], config["eos_token_id"]) == (None, None)  # its tokenizer names none
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", *TOKENIZER}


def read(trips: Path, case: str, unit: str) -> list[Any]:
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


@pytest.mark.parametrize("fault", BROKEN)
def test_a_fault_that_one_rank_finds_ends_all_with_the_same_line(fault: str, trips: Path) -> None:
    first, second = read(trips, f"{fault}-{'tp2' if fault == 'fewer_layers' else 'pp2'}", "error")
    assert first == second
    assert BROKEN[fault] in first
    assert "\n" not in first


SIGNATURES = {
    "create_read_items_for_chunk_list": "fqn checkpoint_md local_chunks",
    "FileSystemWriter": "path single_file_per_rank sync_files thread_count per_thread_copy_ahead "
    "cache_staged_state_dict overwrite _extensions serialization_format",
    "save": "state_dict checkpoint_id storage_writer planner process_group no_dist use_collectives",
    "FileSystemReader.read_data": "self plan planner",
    "FileSystemReader.set_up_storage_reader": "self metadata is_coordinator args kwargs",
    "DefaultLoadPlanner.resolve_tensor": "self read_item",
    "DefaultLoadPlanner.commit_tensor": "self read_item tensor",
    "DefaultSavePlanner.resolve_data": "self write_item",
}


def test_what_the_stream_takes_of_torch_is_as_it_was(trips: Path) -> None:
    """megatron-core's are in megatron_signatures.json.  Another torch fails here, with the name of what changed."""
    assert json.loads((trips / "out" / "0.json").read_text())["signatures"] == SIGNATURES
