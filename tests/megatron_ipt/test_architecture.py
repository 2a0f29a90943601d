"""Numbers of a model, and layouts that do not divide it."""

from __future__ import annotations

from typing import Any

import pytest

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture, check_layout, padded_vocab_size, with_settings
from megatron_ipt.settings import ModelSettings, TrainSettings

LLAMA3_70B = Architecture(80, 8192, 28672, 64, 8, 128, 1e-5, 500000.0, 128256)
SMOLLM2 = Architecture(30, 576, 1536, 9, 3, 64, 1e-5, 100000.0, 49152, share_embeddings_and_output_weights=True)


def train(**settings: Any) -> TrainSettings:
    return TrainSettings(**{"global_batch_size": 8, "seq_length": 512, "train_iters": 1, "lr": 1e-4, **settings})


def test_parameters_are_the_published_counts() -> None:
    assert LLAMA3_70B.parameters() == 70_553_706_496
    assert SMOLLM2.parameters() == 134_515_008


def test_the_vocabulary_is_padded_as_megatron_pads_it() -> None:
    padded = padded_vocab_size(LLAMA3_70B, ModelSettings(), train(tensor_model_parallel_size=4))
    assert padded == 128512
    assert LLAMA3_70B.parameters(padded) == 70_557_900_800


TENSOR, PIPELINE, VIRTUAL = (f"{name}_model_parallel_size" for name in ("tensor", "pipeline", "virtual_pipeline"))
CHUNKS = {PIPELINE: 2, VIRTUAL: 2}


@pytest.mark.parametrize(
    ("settings", "world", "told", "cures"),
    [
        ({TENSOR: 2}, 2, "2 does not divide num_attention_heads (9); use one of 1, 3", [({TENSOR: 3}, 3)]),
        ({TENSOR: 9}, 9, "9 does not divide num_query_groups (3); use one of 1, 3", [({TENSOR: 1}, 1)]),
        ({PIPELINE: 4}, 4, "4 does not divide num_layers (30); use one of 1, 2, 3, 5, 6", [({PIPELINE: 5}, 5)]),
        (
            CHUNKS,
            2,
            "2 does not divide the layers of a stage (15); "
            "use one of 3, 5, 15, or pipeline_model_parallel_layout: Et*7|t*8|t*8|t*7L",
            [({**CHUNKS, VIRTUAL: 5}, 2), ({**CHUNKS, "pipeline_model_parallel_layout": "Et*7|t*8|t*8|t*7L"}, 2)],
        ),
        (
            {PIPELINE: 30, VIRTUAL: 2},
            30,
            "2 does not divide the layers of a stage (1); leave it out",
            [({PIPELINE: 30}, 30)],
        ),
        (
            {PIPELINE: 3},
            4,
            "3 does not divide the world (4); use one of 1, 2, 4, or start 3 processes (train.nproc_per_node x nodes)",
            [({PIPELINE: 2}, 4), ({PIPELINE: 3}, 3)],
        ),
        (
            {"global_batch_size": 6},
            4,
            "6 is no multiple of micro_batch_size x data-parallel size = 4; use 4 or 8",
            [({"global_batch_size": 4}, 4), ({"global_batch_size": 8}, 4)],
        ),
        (
            {"step_batch_size_schedule": "0:6 12:8"},
            4,
            "train.step_batch_size_schedule: 6 is no multiple of micro_batch_size x data-parallel size = 4; use 4 or 8",
            [({"step_batch_size_schedule": "0:4 12:8"}, 4)],
        ),
        (
            {PIPELINE: 3, VIRTUAL: 2},
            3,
            "8 is no multiple of micro_batch_size x data-parallel size x pipeline_model_parallel_size = 3; "
            "use 6 or 9, or leave out virtual_pipeline_model_parallel_size",
            [({PIPELINE: 3, VIRTUAL: 2, "global_batch_size": 9}, 3), ({PIPELINE: 3}, 3)],
        ),
        (
            {TENSOR: 3, "sequence_parallel": True},
            3,
            "512 is no multiple of tensor_model_parallel_size = 3; use 513, or leave out sequence_parallel",
            [({TENSOR: 3, "sequence_parallel": True, "seq_length": 513}, 3), ({TENSOR: 3}, 3)],
        ),
        (
            {TENSOR: 3, "sequence_parallel": True, "context_parallel_size": 2},
            6,
            "512 is no multiple of tensor_model_parallel_size x context_parallel_size = 6; use 516",
            [({TENSOR: 3, "sequence_parallel": True, "context_parallel_size": 2, "seq_length": 516}, 6)],
        ),
    ],
)
def test_a_layout_that_does_not_divide_says_what_would(
    settings: dict[str, Any], world: int, told: str, cures: list[tuple[dict[str, Any], int]]
) -> None:
    with pytest.raises(UserError) as raised:
        check_layout(SMOLLM2, train(**settings), world)
    assert told in str(raised.value)
    for cured, processes in cures:
        check_layout(SMOLLM2, train(**cured), processes)


@pytest.mark.parametrize(("tensor", "pipeline", "world"), [(1, 1, 1), (3, 2, 12), (1, 30, 60), (3, 10, 60)])
def test_a_layout_that_divides_passes(tensor: int, pipeline: int, world: int) -> None:
    settings = train(tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline, global_batch_size=24)
    check_layout(SMOLLM2, settings, world)


def test_settings_replace_single_numbers() -> None:
    changed = with_settings(SMOLLM2, ModelSettings(rotary_base=5000.0))
    assert changed.rotary_base == 5000.0
    assert changed.num_layers == 30


SCRATCH = {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4, "vocab_size": 100}


def test_a_family_from_scratch_has_its_parts() -> None:
    """By hand: 3 x 64 biases, or norms of width 16 of query and key, in each of 2 layers."""
    plain = with_settings(None, ModelSettings(**SCRATCH))
    biased, normed = (with_settings(None, ModelSettings(**SCRATCH, family=name)) for name in ("qwen2", "qwen3"))
    assert (biased.add_qkv_bias, normed.qk_layernorm) == (True, True)
    assert biased.parameters() - plain.parameters() == 2 * 3 * 64
    assert normed.parameters() - plain.parameters() == 2 * 2 * 16
    windowed = with_settings(None, ModelSettings(**SCRATCH, family="mistral", window_size=(7, 0)))
    assert (windowed.window_size, windowed.parameters()) == ((7, 0), plain.parameters())


@pytest.mark.parametrize(
    ("base", "settings", "told"),
    [
        (SMOLLM2, {"family": "mistral"}, "mistral, but the config.json of model.load_hf is of family llama"),
        (None, {**SCRATCH, "window_size": (7, 0)}, "a model of family llama has no window over every layer"),
    ],
)
def test_a_part_that_the_family_has_not_is_refused(base: Any, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as raised:
        with_settings(base, ModelSettings(**settings))
    assert told in str(raised.value)


def test_a_model_from_scratch_needs_its_numbers() -> None:
    with pytest.raises(UserError, match="num_layers"):
        with_settings(None, ModelSettings(hidden_size=64, num_attention_heads=4))
    found = with_settings(None, ModelSettings(**SCRATCH))
    assert (found.num_query_groups, found.kv_channels) == (4, 16)
