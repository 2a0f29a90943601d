"""What FP8 asks of other settings: what contradicts it is refused with what works, what follows from it is set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.mcore import fp8
from megatron_ipt.mcore.contradiction import refuse
from megatron_ipt.settings import TrainSettings

FACTS = json.loads((Path(__file__).parent / "transformer_engine_facts.json").read_text(encoding="utf-8"))
HYBRID = {"fp8": "hybrid", "fp8_recipe": "tensorwise"}


def train(**changed: Any) -> TrainSettings:
    return TrainSettings(**{"global_batch_size": 8, "seq_length": 64, "train_iters": 1, "lr": 1e-3, **changed})


def refused(transformer: dict[str, Any], settings: TrainSettings) -> str | None:
    try:
        refuse(fp8.contradictions(settings.model_copy(update={"transformer_config": transformer}), 4))
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("transformer", "changed", "told"),
    [
        ({"fp8_param": True}, {}, "fp8_param: says how FP8 is used, and FP8 is off; set fp8: hybrid"),
        ({"first_last_layers_bf16": True}, {}, "first_last_layers_bf16: says how FP8 is used"),
        (HYBRID, {"bf16": False}, "fp8: stands beside bf16, and train.bf16 is false; set train.bf16: true"),
        (
            {**HYBRID, "fp8_param": True},
            {"use_distributed_optimizer": False},
            "fp8_param: weights in FP8 are made and gathered by the distributed optimizer; set train.use_distributed",
        ),
        ({**HYBRID, "fp8_amax_history_len": 16}, {}, "fp8_amax_history_len: is of delayed scaling, and fp8_recipe is"),
        (
            {**HYBRID, "fp8_param": True, "use_cpu_initialization": True},
            {},
            "use_cpu_initialization: weights in FP8 are made on the GPU; leave it out",
        ),
        (
            {"fp8": "e4m3", "fp8_recipe": "mxfp8", "fp8_param": True},
            {"fp8_shadow_interval": 5, "overlap_param_gather": True, "overlap_grad_reduce": True},
            "fp8_shadow_interval: weights would be gathered anew, through the buffer in which the step's gradients",
        ),
        ({**HYBRID, "fp8_output_proj": True}, {}, "fp8_output_proj: needs fp8_recipe: mxfp8, and it is tensorwise"),
        ({"fp8": "e4m3", "fp8_recipe": "custom"}, {}, "fp8_recipe: custom needs fp8_quantizer_factory"),
        (
            {"fp8": "hybrid", "first_last_layers_bf16": True},
            {},
            "first_last_layers_bf16: delayed scaling enters FP8 once for all layers; use fp8_recipe: tensorwise",
        ),
        (
            {**HYBRID, "first_last_layers_bf16": True, "num_layers_at_end_in_bf16": 5},
            {},
            "num_layers_at_end_in_bf16: 5 is not within a pipeline stage, which has 4 layers; use 0 to 4",
        ),
        ({}, {"fp8_shadow_interval": 2}, "train.fp8_shadow_interval: there is no FP8 to watch; set train.transformer"),
        (HYBRID, {"fp8_emulation": "hybrid"}, "train.fp8_emulation: stands in for FP8, and transformer_config.fp8 is"),
    ],
)
def test_what_contradicts_is_refused_with_what_works(
    transformer: dict[str, Any], changed: dict[str, Any], told: str
) -> None:
    found = refused(transformer, train(**changed))
    assert found is not None and told in found and "\n" not in found


@pytest.mark.parametrize(
    "transformer",
    [
        {},
        HYBRID,
        {"fp8": "hybrid", "fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"},
        {**HYBRID, "first_last_layers_bf16": True, "num_layers_at_start_in_bf16": 0, "num_layers_at_end_in_bf16": 4},
        {"fp8": "e4m3", "fp8_recipe": "mxfp8", "fp8_param": True, "fp8_output_proj": True},
        {"fp8": "e4m3", "fp8_recipe": "blockwise"},
    ],
)
def test_what_goes_together_passes(transformer: dict[str, Any]) -> None:
    assert refused(transformer, train()) is None


def test_what_follows_for_the_optimizer_and_the_gradients_is_set() -> None:
    """As Megatron-LM's flags: --fp8-recipe reaches both configurations, --fp8-param-gather is fp8_param."""
    assert fp8.optimizer_fields({}) == fp8.ddp_fields({}) == {}
    assert (fp8.optimizer_fields({"fp8": "hybrid"}), fp8.ddp_fields({"fp8": "hybrid"})) == (
        {"fp8_recipe": "delayed"},
        {},
    )
    kept = {**HYBRID, "fp8_param": True}
    assert fp8.transformer_fields(kept) == {"use_cpu_initialization": False}
    assert fp8.transformer_fields(HYBRID) == fp8.transformer_fields({}) == {}
    assert fp8.optimizer_fields(kept) == {"fp8_recipe": "tensorwise"}
    assert fp8.ddp_fields(kept) == {"fp8_param_gather": True}
    twice = {"fp8": "e4m3", "fp8_recipe": "mxfp8", "fp8_param": True}
    assert fp8.optimizer_fields(twice) == {"fp8_recipe": "mxfp8", "reuse_grad_buf_for_mxfp8_param_ag": True}
    assert fp8.ddp_fields(twice) == {"fp8_param_gather": True, "reuse_grad_buf_for_mxfp8_param_ag": True}


@pytest.mark.parametrize(
    ("recipe", "capability", "told"),
    [
        ("tensorwise", (8, 0), "tensorwise needs compute capability 8.9, A has 8.0; train in bf16: leave fp8 out"),
        (
            "blockwise",
            (8, 9),
            "blockwise needs compute capability 9.0, A has 8.9; use fp8_recipe: delayed or tensorwise",
        ),
        ("mxfp8", (9, 0), "to below 12.0, A has 9.0; use fp8_recipe: delayed or tensorwise or blockwise"),
        ("mxfp8", (12, 0), "mxfp8 needs compute capability 10.0 to below 12.0, A has 12.0"),
    ],
)
def test_a_card_that_lacks_it_is_named(recipe: str, capability: tuple[int, int], told: str) -> None:
    with pytest.raises(UserError) as error:
        fp8.check_card({"fp8": "hybrid", "fp8_recipe": recipe}, "A", capability, (13, 0))
    assert told in str(error.value)


def test_a_cuda_that_lacks_it_is_named() -> None:
    with pytest.raises(UserError) as error:
        fp8.check_card({"fp8": "hybrid", "fp8_recipe": "blockwise"}, "A", (9, 0), (12, 8))
    assert "blockwise needs CUDA 12.9, torch is built with 12.8; use fp8_recipe: delayed or" in str(error.value)


@pytest.mark.parametrize("recipe", sorted(fp8.CARDS))
def test_cards_are_those_that_transformer_engine_takes(recipe: str) -> None:
    taken = {(tuple(card), cuda) for card, cuda in FACTS["support"][recipe]}
    for card in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)]:
        for cuda in ["12.8", "12.9", "13.0"]:
            major, minor = map(int, cuda.split("."))
            try:
                fp8.check_card({"fp8": "hybrid", "fp8_recipe": recipe}, "A", card, (major, minor))
            except UserError:
                assert (card, cuda) not in taken, (card, cuda)
            else:
                assert (card, cuda) in taken, (card, cuda)


def test_without_fp8_any_card_will_do() -> None:
    fp8.check_card({}, "A", (7, 0), (11, 0))


@pytest.mark.parametrize(
    ("transformer", "changed", "model", "told"),
    [
        (HYBRID, {"seq_length": 12}, {}, "a product of 12 tokens on a rank is no multiple of 8"),
        (HYBRID, {"context_parallel_size": 2, "seq_length": 24}, {}, "a product of 12 tokens on a rank"),
        (HYBRID, {"tensor_model_parallel_size": 2}, {"ffn_hidden_size": 688 // 2}, "ffn_hidden_size: 172 on a rank"),
        (HYBRID, {}, {"kv_channels": 3}, "num_attention_heads x kv_channels: 24 on a rank, no multiple of 16"),
        (
            {"fp8": "e4m3", "fp8_recipe": "mxfp8"},
            {},
            {"ffn_hidden_size": 176},
            "176 on a rank, no mul",
        ),
        (HYBRID, {}, {}, None),
        ({}, {"seq_length": 12}, {"ffn_hidden_size": 3}, None),
    ],
)
def test_products_that_fp8_kernels_do_not_take_are_named(
    transformer: dict[str, Any], changed: dict[str, Any], model: dict[str, Any], told: str | None
) -> None:
    architecture = replace(Architecture(4, 64, 176, 8, 4, 8, 1e-5, 1e4, 512), **model)
    if told is None:
        fp8.check_products(transformer, train(**changed), architecture)
        return
    with pytest.raises(UserError, match=told):
        fp8.check_products(transformer, train(**changed), architecture)


def test_a_probe_needs_fp8_and_an_emulation_none() -> None:
    assert "there is no FP8 to watch" in str(refused({}, train(fp8_shadow_interval=5)))
    assert refused({}, train(fp8_shadow_interval=5, fp8_emulation="hybrid")) is None
    assert "leave one out" in str(refused(HYBRID, train(fp8_emulation="hybrid")))
