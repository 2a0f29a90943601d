"""What an export writes: config.json with what training changed and no more, and safetensors files of a size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from data_prep.errors import UserError
from megatron_ipt.architecture import RopeScaling
from megatron_ipt.convert import safetensors_directory
from megatron_ipt.convert.exported_config import exported_config, token_ids
from megatron_ipt.convert.exported_files import check_replaceable
from megatron_ipt.convert.families import read_architecture
from megatron_ipt.convert.safetensors_directory import SafetensorsDirectory
from megatron_ipt.convert.unread import check_unread

NUMBERS = {
    **{"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 8},
    **{"num_key_value_heads": 4, "rms_norm_eps": 1e-5, "vocab_size": 512, "max_position_embeddings": 256},
}
OLD = {"model_type": "llama", **NUMBERS, "rope_theta": 1e4, "torch_dtype": "float32", "a_key_of_theirs": [1]}
NEW = {"model_type": "llama", **NUMBERS, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
MISTRAL = {"model_type": "mistral", **NUMBERS, "rope_theta": 1e4, "sliding_window": 37, "dtype": "float32"}
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
SCALED = {"rope_type": "llama3", **SCALING}

# the source's config.json, what training changed, what the export then says otherwise
CHANGED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "nothing": (OLD, {}, {}),
    "epsilon": (OLD, {"layernorm_epsilon": 1e-6}, {"rms_norm_eps": 1e-6}),
    "tied": (NEW, {"share_embeddings_and_output_weights": True}, {"tie_word_embeddings": True}),
    "theta": (OLD, {"rotary_base": 5e5}, {"rope_theta": 5e5}),
    "theta_of_5": (NEW, {"rotary_base": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "scaling": (OLD, {"rope_scaling": RopeScaling(**SCALING)}, {"rope_scaling": SCALED}),
    "scaling_of_5": (
        NEW,
        {"rope_scaling": RopeScaling(**SCALING)},
        {"rope_parameters": {**SCALED, "rope_theta": 1e4}},
    ),
    "window": (MISTRAL, {"window_size": (59, 0)}, {"sliding_window": 60}),
}


def written(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", CHANGED)
def test_what_training_changed_is_altered_and_told(name: str, tmp_path: Path) -> None:
    given, changes, expected = CHANGED[name]
    architecture = replace(read_architecture(written(tmp_path, given)), **changes)
    config, told = exported_config(architecture, given, tmp_path, 128, "float32")
    if "torch_dtype" not in given:
        expected = {"dtype": "float32", **expected}
    assert config == {**given, **expected}
    assert told == {key: (given.get(key), value) for key, value in expected.items() if given.get(key) != value}
    theirs = AutoConfig.from_pretrained(written(tmp_path, config))
    rope = theirs.rope_parameters
    assert (rope["rope_theta"], theirs.rms_norm_eps) == (architecture.rotary_base, architecture.layernorm_epsilon)
    assert rope["rope_type"] == ("llama3" if architecture.rope_scaling else "default")


def test_more_positions_than_the_source_had_are_told_and_fewer_are_not(tmp_path: Path) -> None:
    architecture = read_architecture(written(tmp_path, OLD))
    for length, positions in ((64, 256), (256, 256), (1024, 1024)):
        config, told = exported_config(architecture, OLD, tmp_path, length, "bfloat16")
        assert config["max_position_embeddings"] == positions
        assert ("max_position_embeddings" in told) == (positions > 256)
        assert told["torch_dtype"] == ("float32", "bfloat16")


@pytest.mark.parametrize("changes", [{"num_layers": 3}, {"vocab_size": 511}, {"family": "mistral"}])
def test_another_model_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    architecture = replace(read_architecture(written(tmp_path, OLD)), **changes)
    with pytest.raises(UserError, match=r"the checkpoint.*give the one it began from"):
        exported_config(architecture, OLD, tmp_path, 64, "float32")


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 600), (torch.bfloat16, 10**6)])
def test_files_are_those_of_the_library(dtype: torch.dtype, most: int, tmp_path: Path) -> None:
    """Read by safetensors itself.  A group is never cut, so one that is too large for a file is alone in it."""
    generator = torch.Generator().manual_seed(1)
    shapes = [{"a": (3, 5), "b": (7,)}, {"c": (20, 10)}, {"d": (4, 4)}, {"e": (5,), "f": (2, 2)}]
    tensors = [{name: torch.randn(shape, generator=generator) for name, shape in group.items()} for group in shapes]
    safetensors_directory.write(tmp_path, shapes, dtype, lambda number: tensors[number], most)
    files = sorted(tmp_path.glob("*.safetensors"))
    names = [sorted(load_file(file)) for file in files]
    assert names == ([["a", "b"], ["c"], ["d", "e", "f"]] if most == 600 else [["a", "b", "c", "d", "e", "f"]])
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    expected = {name: tensor.to(dtype) for group in tensors for name, tensor in group.items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    if len(files) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    source = SafetensorsDirectory(tmp_path)
    assert source.names() == expected.keys()
    assert torch.equal(source.slice("c", (20, 10))[5:8], expected["c"][5:8])


BAD = {
    "no_weights": ({}, "holds neither model.safetensors nor model.safetensors.index.json"),
    "index": ({"model.safetensors.index.json": b"[]"}, "is no index of safetensors files"),
    "no_file_name": ({"model.safetensors.index.json": b'{"weight_map": {"a": 1}}'}, "is no index of safetensors files"),
    "file": ({"model.safetensors": b"0123456789"}, "not readable as safetensors"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_directory_without_readable_weights_is_told(fault: str, tmp_path: Path) -> None:
    files, told = BAD[fault]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told):
        SafetensorsDirectory(tmp_path)


@pytest.mark.parametrize(("dtype", "mend"), [("float8_e4m3fn", "before quantization"), ("float64", "save it in one")])
def test_weights_of_another_type_are_refused(dtype: str, mend: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 2, dtype=getattr(torch, dtype))}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=mend):
        SafetensorsDirectory(tmp_path).slice("a", (2, 2))


def test_where_one_file_and_shards_are_there_the_one_is_read(tmp_path: Path) -> None:
    """As transformers does, which the gate compares with."""
    for file, value in (("model.safetensors", 1.0), ("old.safetensors", 2.0)):
        save_file({"a": torch.full((2,), value)}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "old.safetensors"}}')
    assert SafetensorsDirectory(tmp_path).slice("a", (2,))[:].tolist() == [1.0, 1.0]


def test_a_tied_model_with_a_further_output_table_is_refused(tmp_path: Path) -> None:
    """Unless it is the embeddings again.  The last row alone is unlike, behind the first part that is compared."""
    architecture = replace(
        read_architecture(written(tmp_path, OLD)), vocab_size=5000, share_embeddings_and_output_weights=True
    )
    table = torch.randn(5000, 64, generator=torch.Generator().manual_seed(1))
    for change in (0.0, 1.0):
        head = table.clone()
        head[-1] += change
        save_file({"model.embed_tokens.weight": table, "lm_head.weight": head}, tmp_path / "model.safetensors")
        source = SafetensorsDirectory(tmp_path)
        if change:
            with pytest.raises(UserError, match=r"config\.json ties the embeddings, but 'lm_head.weight' is not"):
                check_unread(source, {"model.embed_tokens.weight"}, architecture)
        else:
            check_unread(source, {"model.embed_tokens.weight"}, architecture)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("model.layers.1.self_attn.rotary_emb.inv_freq", ""),  # of old files: transformers leaves it out too
        ("model.layers.1.self_attn.q_proj.bias", "is of no use to a model of family llama"),
        ("model.layers.2.mlp.up_proj.weight", "is of no use to a model of 2 layers"),
        ("lm_head.weight", "is of no use to a model of family llama"),
    ],
)
def test_a_tensor_that_nobody_reads_is_told(name: str, told: str, tmp_path: Path) -> None:
    architecture = read_architecture(written(tmp_path, OLD))
    save_file({name: torch.ones(2)}, tmp_path / "model.safetensors")
    source = SafetensorsDirectory(tmp_path)
    if told:
        with pytest.raises(UserError, match=told):
            check_unread(source, set(), architecture)
    check_unread(source, {name} if told else set(), architecture)


EXPORTED = ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json")


def test_only_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "iter_0000002"
    checkpoint.mkdir(parents=True)
    out = tmp_path / "out"
    check_replaceable(out, checkpoint, [checkpoint])
    out.mkdir()
    for name in (*EXPORTED, "generation_config.json", "LICENSE", "chat_template.jinja"):
        (out / name).touch()
    check_replaceable(out, checkpoint, [checkpoint, tmp_path / "source"])
    (out / "thesis.txt").touch()
    with pytest.raises(UserError, match=r"holds what no export writes \(thesis\.txt\)"):
        check_replaceable(out, checkpoint, [checkpoint])
    with pytest.raises(UserError, match="is a file"):
        check_replaceable(out / "thesis.txt", checkpoint, [checkpoint])


@pytest.mark.parametrize("place", ["run", "run/checkpoints", "run/checkpoints/iter_0000002", "source", "link"])
def test_what_is_read_is_not_replaced(place: str, tmp_path: Path) -> None:
    """Nor a folder around it, under whatever name."""
    checkpoint, source = tmp_path / "run" / "checkpoints" / "iter_0000002", tmp_path / "source"
    for folder in (checkpoint, source):
        folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(source, target_is_directory=True)
    with pytest.raises(UserError, match="is or holds"):
        check_replaceable(tmp_path / place, checkpoint, [checkpoint, source])


def test_no_file_comes_into_a_checkpoint(tmp_path: Path) -> None:
    """Its files are listed with their hashes: a further one spoils it."""
    with pytest.raises(UserError, match="is within the checkpoint"):
        check_replaceable(tmp_path / "iter_0000002" / "hf", tmp_path / "iter_0000002", [tmp_path / "iter_0000002"])


def test_a_model_from_scratch_names_its_tokenizers_tokens(tmp_path: Path) -> None:
    """transformers' own defaults are 1 and 2, whatever those are in this vocabulary."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(WordLevel({"a": 0, "b": 1, "c": 2, "<end>": 3, "<begin>": 4}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", bos_token="<begin>").save_pretrained(tmp_path)
    assert token_ids(tmp_path) == {"bos_token_id": 4, "eos_token_id": 3}
    assert token_ids(None) == token_ids(tmp_path / "tokenizer.json") == {"bos_token_id": None, "eos_token_id": None}
    with pytest.raises(UserError, match="no tokenizer there"):
        token_ids(tmp_path / "none")
