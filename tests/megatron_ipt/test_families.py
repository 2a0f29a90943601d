"""Each family of models computes what transformers computes, from random weights that transformers saved."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_ranks
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture, RopeScaling
from megatron_ipt.convert.families import FAMILIES, read_architecture

TOKENS = 512
WINDOW = 37
SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.05,
    "tie_word_embeddings": False,
}
LLAMA31 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "smollm2": {"model_type": "llama", "tie_word_embeddings": True},
    # as 3.1 has it, for an original length that these tokens pass
    "llama31": {
        "model_type": "llama",
        "rope_parameters": {
            **LLAMA31,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    },
    "mistral": {"model_type": "mistral", "sliding_window": WINDOW},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 24},
}
LAYOUTS = {
    **{name: ["whole", "tp2_sp", "pp2"] for name in MODELS},
    "mistral": ["whole", "tp2_sp", "pp2", "cp2", "documents", "documents_cp2"],
    "qwen3": ["whole", "tp2_sp", "tp2", "pp2"],
}
CASES = [f"{name} {layout}" for name, layouts in LAYOUTS.items() for layout in layouts]


def save(folder: Path, settings: dict[str, Any]) -> Any:
    """A model of `settings` with no weight at its start value: norms are not 1 and biases not 0."""
    torch.manual_seed(11)
    settings = {**SIZES, **settings}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0 if parameter.mean() == 1 else 0.0, 0.2)
    model.save_pretrained(folder)
    return model


def norm_of_gradient(logits: torch.Tensor, tokens: torch.Tensor, model: Any) -> float:
    model.zero_grad()
    torch.nn.functional.cross_entropy(logits[:-1], tokens[1:]).backward()
    return float(torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm())


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], dict[str, Any]]:
    """(transformers' gradient norms, what families_worker.py found) by model and by model and layout."""
    folder = tmp_path_factory.mktemp("families")
    generator = torch.Generator().manual_seed(5)
    lengths = [200, 1, 61, WINDOW, WINDOW + 1]
    lengths.append(TOKENS - sum(lengths))
    tokens = torch.randint(0, SIZES["vocab_size"], (TOKENS,), generator=generator)  # type: ignore[arg-type]
    expected = {"tokens": tokens, "segments": torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))}
    norms: dict[str, float] = {}
    for name, settings in MODELS.items():
        model = save(folder / name, settings)
        logits = model(tokens[None]).logits[0]
        norms[name] = norm_of_gradient(logits, tokens, model)
        expected[name] = logits.detach()
        with torch.no_grad():
            alone = [model(document[None]).logits[0] for document in tokens.split(lengths)]
        expected[f"{name}_documents"] = torch.cat(alone)
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, folder / "expected.safetensors")
    cases = {name: [str(folder / name), layouts] for name, layouts in LAYOUTS.items()}
    worker, out = Path(__file__).with_name("families_worker.py"), folder / "out.json"
    run_ranks(2, worker, folder / "expected.safetensors", out, json.dumps(cases))
    return norms, json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(case: str, compared: Any) -> None:
    """The gate's limits; the gradient's norm tells whether each rank's part of it is counted once."""
    norms, told = compared
    name, layout = case.split(" ")
    assert told[case]["dloss"] <= 1e-5
    assert told[case]["max_dlogit"] <= 1e-3
    if "documents" not in layout:
        assert told[case]["norm"] == pytest.approx(norms[name], rel=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_config_is_read_counted_and_written(name: str, tmp_path: Path) -> None:
    """transformers counts the weights; what we write is read back as the same model; so is what JSON keeps of it."""
    model = save(tmp_path, MODELS[name])
    found = read_architecture(tmp_path)
    assert found.parameters() == sum(parameter.numel() for parameter in model.parameters())
    written = tmp_path / "written"
    written.mkdir()
    config = FAMILIES[found.family].config_json(found, 512)
    (written / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert read_architecture(written) == found
    assert Architecture(**json.loads(json.dumps(found.to_json()))) == found
    theirs = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(written))
    assert {key: value.shape for key, value in theirs.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }


def test_a_card_of_before_has_none_of_the_later_parts() -> None:
    numbers = {"num_layers": 1, "hidden_size": 8, "ffn_hidden_size": 8, "num_attention_heads": 1, "kv_channels": 8}
    rest = {"num_query_groups": 1, "layernorm_epsilon": 1e-5, "rotary_base": 1e4, "vocab_size": 8}
    found = Architecture(**numbers, **rest)  # type: ignore[arg-type]
    assert (found.add_qkv_bias, found.qk_layernorm, found.window_size, found.rope_scaling) == (False, False, None, None)


def test_the_spelling_of_transformers_4_is_read(tmp_path: Path) -> None:
    """Llama 3.2's own config.json, in short."""
    rope = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    old = {"rope_theta": 500000.0, "rope_scaling": {**rope, "original_max_position_embeddings": 8192}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES, **old}), encoding="utf-8")
    found = read_architecture(tmp_path)
    assert (found.rotary_base, found.rope_scaling) == (500000.0, RopeScaling(32.0, 1.0, 4.0, 8192))


ORIGINAL = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
OF_3_1 = {"rope_type": "llama3", "factor": 8.0, **ORIGINAL}
WITHOUT_LENGTH = {name: value for name, value in OF_3_1.items() if name != "original_max_position_embeddings"}
SPELLED: dict[str, dict[str, Any]] = {
    "theta_within_and_beside": {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 2e4}},
    "both_names": {"rope_scaling": OF_3_1, "rope_parameters": {"rope_type": "default", "rope_theta": 2e4}},
    "both_names_with_theta": {"rope_theta": 3e4, "rope_scaling": {**OF_3_1, "rope_theta": 4e4}},
    "length_beside": {"rope_theta": 5e5, "rope_scaling": OF_3_1, "original_max_position_embeddings": 64},
    "length_from_positions": {"rope_theta": 5e5, "rope_scaling": WITHOUT_LENGTH, "max_position_embeddings": 256},
    "type": {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
    "nothing": {},
}


@pytest.mark.parametrize("name", SPELLED)
def test_rope_is_what_transformers_makes_of_the_same_file(name: str, tmp_path: Path) -> None:
    """Where a config.json says a thing twice, the one that transformers takes."""
    content = {"model_type": "llama", **SIZES, **SPELLED[name]}
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    found, config = read_architecture(tmp_path), AutoConfig.from_pretrained(tmp_path)
    config.standardize_rope_params()  # as its models do when they are built
    theirs = config.rope_parameters
    assert found.rotary_base == theirs["rope_theta"]
    expected = None
    if theirs["rope_type"] != "default":
        expected = RopeScaling(*(theirs[field.name] for field in fields(RopeScaling)))
    assert found.rope_scaling == expected


NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps", "vocab_size")


@pytest.mark.parametrize("family", FAMILIES)
def test_where_a_file_is_silent_transformers_defaults_hold(family: str, tmp_path: Path) -> None:
    content = {name: SIZES[name] for name in NEEDED} | {"num_attention_heads": 64, "hidden_size": 512}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **content}), encoding="utf-8")
    found, theirs = read_architecture(tmp_path), AutoConfig.from_pretrained(tmp_path)
    window = theirs.sliding_window if family == "mistral" else None
    assert found.num_query_groups == theirs.num_key_value_heads
    assert found.kv_channels == (getattr(theirs, "head_dim", None) or 8)
    assert found.window_size == (None if window is None else (window - 1, 0))
    assert found.share_embeddings_and_output_weights == theirs.tie_word_embeddings
    assert (found.init_method_std, found.rotary_base) == (
        theirs.initializer_range,
        theirs.rope_parameters["rope_theta"],
    )


REFUSED = {
    "yarn": ({"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling 'yarn'"),
    "partly_rotated": ({"model_type": "llama", "partial_rotary_factor": 0.5}, "part of a head only is rotated"),
    "bias": ({"model_type": "llama", "attention_bias": True}, "attention_bias is not supported: it puts a bias on o_"),
    "bias_of_qwen3": ({"model_type": "qwen3", "attention_bias": True}, "it puts a bias on o_proj too"),
    "window_of_some": (
        {"model_type": "qwen2", "use_sliding_window": True},
        "use_sliding_window is not supported: some layers",
    ),
    "window_by_layer": ({"model_type": "qwen3", "layer_types": ["sliding_attention"]}, "layer_types is not supported"),
    "unknown": ({"model_type": "gemma"}, "supported: llama, mistral, qwen2, qwen3"),
    "no_name": ({"model_type": ["llama"]}, "supported: llama, mistral, qwen2, qwen3"),
    "linear_attention": (
        {"model_type": "qwen3", "layer_types": ["full_attention", "linear_attention"]},
        "layer_types is not supported: linear_attention: ours have full_attention alone",
    ),
    "window_of_half": (
        {"model_type": "mistral", "layer_types": ["full_attention", "sliding_attention"]},
        "layer_types is not supported: full_attention: some layers have a window",
    ),
    "window_of_nothing": ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0, expected a whole"),
    "quantized": ({"model_type": "llama", "quantization_config": {"bits": 4}}, "its weights are quantized"),
    "gelu": ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    "text": ({"model_type": "llama", "num_hidden_layers": "2"}, "num_hidden_layers is '2', expected a whole number"),
    "null": ({"model_type": "llama", "hidden_size": None}, "hidden_size is None, expected a whole number"),
    "no_heads": ({"model_type": "llama", "num_attention_heads": 0}, "num_attention_heads is 0, expected"),
    "no_theta": ({"model_type": "llama", "rope_theta": "1e4"}, "rope_theta is '1e4', expected a number"),
    "groups": ({"model_type": "llama", "num_key_value_heads": 3}, "does not go with num_key_value_heads 3"),
    "width": ({"model_type": "llama", "hidden_size": 60}, "num_attention_heads 8 does not go with"),
    "no_factor": ({"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}}, "key 'factor' is missing"),
    "rope_by_layer": (
        {"model_type": "llama", "rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "rope_parameters are not one set for all layers",
    ),
}


@pytest.mark.parametrize("content", ["[]", '"llama"', "{", ""])
def test_a_config_that_is_none_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json: (is no JSON object|not JSON)"):
        read_architecture(tmp_path)


def test_layers_that_are_all_alike_may_be_told_one_by_one(tmp_path: Path) -> None:
    for family, kind in (("mistral", "sliding_attention"), ("qwen2", "full_attention")):
        content = {"model_type": family, **SIZES, "layer_types": [kind] * 2, "hidden_act": "swish"}
        (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
        assert read_architecture(tmp_path).num_layers == 2


@pytest.mark.parametrize("name", REFUSED)
def test_what_we_do_not_compute_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    settings, told = REFUSED[name]
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, **settings}), encoding="utf-8")
    with pytest.raises(UserError) as raised:
        read_architecture(tmp_path)
    assert told in str(raised.value)
