"""CUDA graphs, overlapped communication, kernels and short optimizer states: what is refused, known without a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_prep.errors import UserError
from megatron_ipt.mcore import graph_rules, kernels, optimizer_states, user_buffers
from megatron_ipt.mcore.contradiction import Contradiction
from megatron_ipt.mcore.plain import plain
from megatron_ipt.settings import TrainSettings

FACTS = json.loads((Path(__file__).parent / "transformer_engine_facts.json").read_text(encoding="utf-8"))
GRAPHS = {"cuda_graph_impl": "transformer_engine"}
HYBRID = {"fp8": "hybrid", "fp8_recipe": "tensorwise"}
SHORT = {"use_precision_aware_optimizer": True, "exp_avg_dtype": "bfloat16", "exp_avg_sq_dtype": "bfloat16"}
OVERLAP = {"tensor_model_parallel_size": 2, "sequence_parallel": True, "transformer_config": {"tp_comm_overlap": True}}


def train(**changed: Any) -> TrainSettings:
    return TrainSettings(**{"global_batch_size": 8, "seq_length": 64, "train_iters": 1, "lr": 1e-3, **changed})


def lines(rules: Callable[[TrainSettings], Iterator[Contradiction]], settings: TrainSettings) -> list[str]:
    return [str(UserError(*found)) for found in rules(settings)]


@pytest.mark.parametrize(
    ("own", "changed", "told"),
    [
        ({"cuda_graph_modules": ["mlp"]}, {}, "cuda_graph_modules: says how graphs are captured, and there are none"),
        (
            {**GRAPHS, "cuda_graph_modules": ["mpl"]},
            {},
            "cuda_graph_modules: mpl is no part of these layers; use a list",
        ),
        ({**GRAPHS, "cuda_graph_modules": "attn mlp"}, {}, "cuda_graph_modules: attn mlp is no part of these layers"),
        ({**GRAPHS, "cuda_graph_modules": ["moe"]}, {}, "cuda_graph_modules: moe is no part of these layers"),
        ({"cuda_graph_impl": "full_iteration"}, {}, "would put the losses of each source"),
        (GRAPHS, {"bf16": False}, "captures layers with bf16 inputs, and train.bf16 is false; set train.bf16: true"),
        ({**GRAPHS, "cuda_graph_warmup_steps": 0}, {}, "cuda_graph_warmup_steps: weights are gathered for the first"),
        (GRAPHS, {"reset_attention_mask": True, "reset_position_ids": True}, "use cuda_graph_modules: [mlp], or train"),
        ({**GRAPHS, **HYBRID}, {"fp8_shadow_interval": 5}, "leave out train.fp8_shadow_interval, or the graphs"),
        (
            {"cuda_graph_impl": "local"},
            {"pipeline_model_parallel_size": 2, "step_batch_size_schedule": "0:4 8:8"},
            "each micro batch of a step has its own graph, and their number grows; use one batch size",
        ),
    ],
)
def test_what_graphs_forbid(own: dict[str, Any], changed: dict[str, Any], told: str) -> None:
    (found,) = lines(graph_rules.contradictions, train(transformer_config=own, **changed))
    assert told in found and found.startswith("train.transformer_config.cuda_graph_") and "\n" not in found


@pytest.mark.parametrize(
    ("own", "changed"),
    [
        ({}, {}),
        (GRAPHS, {}),
        ({**GRAPHS, **HYBRID, "cuda_graph_warmup_steps": 1}, {}),
        ({**GRAPHS, "cuda_graph_modules": ["mlp"]}, {"reset_attention_mask": True, "reset_position_ids": True}),
        ({**GRAPHS, "cuda_graph_modules": "mlp"}, {"reset_attention_mask": True, "reset_position_ids": True}),
        ({"cuda_graph_impl": "local"}, {"step_batch_size_schedule": "0:4 8:8"}),
        (GRAPHS, {"pipeline_model_parallel_size": 2, "step_batch_size_schedule": "0:8"}),
    ],
)
def test_what_goes_with_graphs(own: dict[str, Any], changed: dict[str, Any]) -> None:
    assert lines(graph_rules.contradictions, train(transformer_config=own, **changed)) == []


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_graphs_and_an_allocator_that_moves_memory(name: str) -> None:
    moving = {name: "expandable_segments:True"}
    with pytest.raises(UserError, match="set NCCL_GRAPH_REGISTER=0 in the environment"):
        graph_rules.check_environment(train(transformer_config=GRAPHS), moving)
    graph_rules.check_environment(train(transformer_config=GRAPHS), {**moving, "NCCL_GRAPH_REGISTER": "0"})
    graph_rules.check_environment(train(transformer_config={"cuda_graph_impl": "local"}), moving)


@pytest.mark.parametrize(
    ("kind", "layers", "drawn_by"),
    [
        ("none", "transformer_engine", {}),
        ("local", "local", {"use_cudagraphable_rng": True}),
        ("local", "transformer_engine", {"te_rng_tracker": True}),
        ("transformer_engine", "transformer_engine", {"te_rng_tracker": True}),
    ],
)
def test_random_numbers_that_a_graph_draws_anew(kind: str, layers: str, drawn_by: dict[str, bool]) -> None:
    """As megatron/training/arguments.py has it: Transformer Engine's tracker wherever its layers or graphs are."""
    assert graph_rules.generators(train(transformer_config={"cuda_graph_impl": kind}), layers) == drawn_by


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({**OVERLAP, "sequence_parallel": False}, "overlaps what sequence parallelism sends, and there is none"),
        ({**OVERLAP, "tensor_model_parallel_size": 3}, "a micro batch's tokens on a rank do not divide by 3"),
        ({**OVERLAP, "bf16": False}, "has buffers of bf16 or FP8, and train.bf16 is false"),
        ({"tp_comm_overlap_cfg": "a.yaml"}, "train.tp_comm_overlap_cfg: says how communication is overlapped, and it"),
    ],
)
def test_what_overlap_needs(changed: dict[str, Any], told: str) -> None:
    (found,) = lines(user_buffers.contradictions, train(**changed))
    assert told in found
    assert lines(user_buffers.contradictions, train(**OVERLAP)) == []


def test_products_and_options_are_transformer_engines() -> None:
    first = {product: ways[0] for product, ways in user_buffers.METHODS.items()}
    assert first == {product: method for method, products in FACTS["methods"].items() for product in products}
    assert {name: kind.__name__ for name, kind in user_buffers.OPTIONS.items()} == FACTS["options"]
    assert set(FACTS["modes"]) == {"FP8", "NONE"} and FACTS["destroy_ub"] == []
    named = {"shape", "tp_size", "quantization_modes", "ub_cfgs", "bootstrap_backend"}
    assert named <= set(FACTS["initialize_ub"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("qkv_fprop: {method: ring_exchange, num_sm: 1, aggregate: 0}\nproj_fprop: {method: pipeline}", None),
        ("qkv_dgrad: {method: ring_exchange}", None),
        ("qvk_fprop: {method: ring_exchange}", "qvk_fprop: is no product of a layer; use qkv_fprop, fc1_fprop"),
        ("qkv_fprop: {method: pipeline}", "qkv_fprop.method: pipeline does not fit this product; use ring_exchange"),
        ("qkv_fprop: {nums_sm: 1}", "qkv_fprop.nums_sm: is no option; use method, num_sm"),
        ("qkv_fprop: {num_sm: many}", "qkv_fprop.num_sm: 'many' is not legal; use a whole number"),
        ("qkv_fprop: {num_sm: true}", "qkv_fprop.num_sm: True is not legal; use a whole number"),
        ("qkv_dgrad: {method: ring_exchange}\nqkv_wgrad: {method: bulk}", "qkv_wgrad: goes with a bulk qkv_dgrad only"),
        ("qkv_fprop: fast", "qkv_fprop: holds no options; use method"),
        ("- a", "holds no mapping; name products: qkv_fprop"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_a_file_of_overlaps(tmp_path: Path, text: str, told: str | None) -> None:
    path = tmp_path / "overlap.yaml"
    path.write_text(text, encoding="utf-8")
    if told is None:
        assert user_buffers.read(path)
        return
    with pytest.raises(UserError) as error:
        user_buffers.read(path)
    assert str(error.value).startswith(str(path)) and told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("own", "changed", "formats"),
    [
        ({}, {}, ["NONE"]),
        (HYBRID, {}, ["FP8"]),
        ({**HYBRID, "first_last_layers_bf16": True}, {}, ["FP8", "NONE"]),
        ({**HYBRID, "first_last_layers_bf16": True, "num_layers_at_start_in_bf16": 0}, {}, ["FP8", "NONE"]),
        (HYBRID, {"fp8_shadow_interval": 10}, ["FP8", "NONE"]),
    ],
)
def test_buffers_for_each_format_in_which_layers_send(
    own: dict[str, Any], changed: dict[str, Any], formats: list[str]
) -> None:
    assert user_buffers.modes(train(transformer_config=own, **changed)) == formats


RING = {"qkv_dgrad": {"method": "ring_exchange", "num_sm": 1}, "fc1_dgrad": {"method": "pipeline"}}


@pytest.mark.parametrize(
    ("found", "own", "told"),
    [
        ({}, {}, None),
        ({"qkv_dgrad": {"method": "bulk"}}, {}, None),
        (RING, {"tp_comm_overlap_rs_dgrad": True}, None),
        (RING, {}, "qkv_dgrad is ring_exchange, and the layers scatter it in bulk; set train.transformer_config.tp_"),
        ({}, {"tp_comm_overlap_rs_dgrad": True}, "tp_comm_overlap_rs_dgrad is set, and qkv_dgrad is bulk; give qkv"),
        (
            {"fc1_dgrad": {"method": "pipeline"}},
            {"tp_comm_overlap_rs_dgrad": True, "tp_comm_overlap_disable_qkv": True},
            None,
        ),
    ],
)
def test_file_and_layers_agree_on_how_gradients_are_scattered(
    found: dict[str, Any], own: dict[str, Any], told: str | None
) -> None:
    if told is None:
        user_buffers.check_scatter(Path("a.yaml"), found, own)
        return
    with pytest.raises(UserError) as error:
        user_buffers.check_scatter(Path("a.yaml"), found, own)
    assert told in str(error.value)


def test_a_product_is_moved_to_its_own_method_once() -> None:
    """Transformer Engine keeps that for the second format, and would look in vain for the product where it was."""
    assert user_buffers.of_each_mode(RING, 1) == [RING]
    found = {**RING, "qkv_fprop": {"method": "ring_exchange"}}
    second = {"qkv_dgrad": {"num_sm": 1}, "fc1_dgrad": {}, "qkv_fprop": {"method": "ring_exchange"}}
    assert user_buffers.of_each_mode(found, 2) == [found, second]


def test_a_buffer_holds_a_micro_batch() -> None:
    assert user_buffers.shape(train(micro_batch_size=2, context_parallel_size=2, **OVERLAP), 512) == [64, 512]


@pytest.mark.parametrize(
    ("own", "changed", "told"),
    [
        ({"exp_avg_dtype": "bfloat16"}, {}, "exp_avg_dtype: needs use_precision_aware_optimizer"),
        (
            {"optimizer_cpu_offload": True},
            {},
            "optimizer_cpu_offload: needs use_precision_aware_optimizer; set use_prec",
        ),
        (
            {**SHORT, "optimizer_cpu_offload": True},
            {"transformer_config": {**HYBRID, "fp8_param": True}},
            "optimizer_cpu_offload: does not go with fp8_param and fp8_recipe: tensorwise; use fp8_recipe: delayed",
        ),
        (SHORT, {"use_distributed_optimizer": False}, "set train.use_distributed_optimizer: true"),
        (SHORT, {"bf16": False}, "is of masters beside bf16 weights"),
        ({**SHORT, "exp_avg_dtype": "float64"}, {}, "FusedAdam has no float64 for it; use float32, float16, bfloat16"),
        ({**SHORT, "main_params_dtype": "bfloat16"}, {}, "main_params_dtype: Transformer Engine's FusedAdam has no bf"),
        (
            {**SHORT, "main_grads_dtype": "bfloat16"},
            {"transformer_config": HYBRID},
            "main_grads_dtype: bfloat16 does not go with fp8_recipe tensorwise, whose masters are fp32",
        ),
    ],
)
def test_what_short_states_need(own: dict[str, Any], changed: dict[str, Any], told: str) -> None:
    (found,) = lines(optimizer_states.contradictions, train(optimizer_config=own, **changed))
    assert told in found and found.startswith("train.optimizer_config.")


def test_formats_of_states_are_those_of_transformer_engines_adam() -> None:
    known = {"main_params_dtype": "master_weight_dtype"}
    for field in ("exp_avg_dtype", "exp_avg_sq_dtype", "main_params_dtype"):
        assert list(optimizer_states.LEGAL[field]) == FACTS["formats"][known.get(field, field)]
        assert known.get(field, field) in FACTS["adam"]
    assert "store_param_remainders" in FACTS["adam"]


@pytest.mark.parametrize(
    ("own", "changed", "bytes_a_parameter"),
    [
        ({}, {}, 12),
        ({}, {"bf16": False}, 8),
        (SHORT, {}, 2 + 2 + 2),
        ({**SHORT, "store_param_remainders": False}, {}, 4 + 2 + 2),
        ({**SHORT, "main_params_dtype": "float16"}, {}, 2 + 2 + 2),
        ({**SHORT, "exp_avg_dtype": "uint8"}, {}, 2 + 1 + 2),
        (SHORT, {"transformer_config": HYBRID}, 4 + 2 + 2),
        (SHORT, {"transformer_config": {"fp8": "hybrid"}}, 2 + 2 + 2),
    ],
)
def test_bytes_of_a_parameters_states(own: dict[str, Any], changed: dict[str, Any], bytes_a_parameter: int) -> None:
    """By megatron-core's rules: whole masters beside scales that are not delayed, else the missing half."""
    assert optimizer_states.state_bytes(train(optimizer_config=own, **changed)) == bytes_a_parameter


@pytest.mark.parametrize(
    ("own", "changed", "told"),
    [
        (
            {"cross_entropy_loss_fusion": True},
            {"deterministic_mode": True},
            "cross_entropy_loss_fusion: may give other",
        ),
        ({"tp_comm_overlap": True}, {"deterministic_mode": True}, "may give other bits each time, and train.determini"),
        ({"cross_entropy_fusion_impl": "te"}, {}, "says how the loss is fused, and it is not"),
        (
            {"attention_backend": "fused"},
            {"bf16": False},
            "fused computes in 16 bits, and train.bf16 is false; use auto",
        ),
        ({"attention_backend": "local"}, {"transformer_impl": "transformer_engine"}, "turns every attention of Transf"),
        (
            {"attention_backend": "unfused"},
            {"context_parallel_size": 2},
            "knows no context parallelism; use fused or flash",
        ),
    ],
)
def test_choices_of_kernels_that_would_do_nothing_or_harm(
    own: dict[str, Any], changed: dict[str, Any], told: str
) -> None:
    (found,) = lines(kernels.contradictions, train(transformer_config=own, **changed))
    assert told in found


@pytest.mark.parametrize(
    ("own", "changed", "told"),
    [
        (HYBRID, {}, "fp8: hybrid needs Transformer Engine's layers, and these are the local ones"),
        ({"tp_comm_overlap": True}, {}, "tp_comm_overlap: it needs Transformer Engine's layers"),
        ({"attention_backend": "fused"}, {}, "attention_backend: fused is one of Transformer Engine's"),
        (
            {"cross_entropy_loss_fusion": True, "cross_entropy_fusion_impl": "te"},
            {},
            "te is Transformer Engine",
        ),
        ({"cuda_graph_impl": "local"}, {}, "cuda_graph_impl: there is no GPU here; leave it out"),
        ({}, {"optimizer_config": SHORT}, "the update is Transformer Engine's FusedAdam's, and there is none here"),
    ],
)
def test_what_this_machine_has_not(own: dict[str, Any], changed: dict[str, Any], told: str) -> None:
    off = {"recompute_granularity": None, "fp8": None, "fp4": None, "tp_comm_overlap": False}
    off |= {"cross_entropy_loss_fusion": False, "cross_entropy_fusion_impl": "native", "cuda_graph_impl": "none"}
    settings = train(transformer_config=own, **changed)
    config = SimpleNamespace(**{**off, **own})
    assert told in str(UserError(*next(kernels.lacking(config, settings, captures=False, has_engine=False))))


@pytest.mark.parametrize("backend", ["fused", "flash"])
def test_a_gate_in_fp32_has_no_kernel_of_16_bits(backend: str) -> None:
    """The gate keeps the run's attention; Transformer Engine would find none, and say so in a traceback."""
    own = {"attention_backend": backend}
    (told,) = lines(kernels.of_the_gate, train(transformer_config=own))
    assert "parity_precision: attention_backend" in told and told.endswith("or use attention_backend: auto")
    assert lines(kernels.of_the_gate, train(transformer_config=own, parity_precision="bfloat16")) == []
    assert lines(kernels.of_the_gate, train()) == []


def test_an_environment_that_chooses_another_attention() -> None:
    with pytest.raises(UserError, match="has NVTE_FUSED_ATTN=0, and auto sets 1; unset NVTE_FUSED_ATTN"):
        kernels.check_environment(train(), {"NVTE_FUSED_ATTN": "0"})
    fused = train(transformer_config={"attention_backend": "fused"})
    kernels.check_environment(fused, {"NVTE_FLASH_ATTN": "0", "NVTE_FUSED_ATTN": "1"})


def test_a_model_to_look_at_has_nothing_of_a_gpus_speed() -> None:
    fast = train(
        transformer_config={
            **{**HYBRID, **GRAPHS, "tp_comm_overlap": True, "first_last_layers_bf16": True},
            "cross_entropy_loss_fusion": True,
            "use_cpu_initialization": False,
            "attention_softmax_in_fp32": True,
        },
        optimizer_config={**SHORT, "adam_beta2": 0.9},
        fp8_shadow_interval=5,
        fp8_shadow_tolerance=0.1,
    )
    found = plain(fast)
    assert found.transformer_config == {"attention_softmax_in_fp32": True}
    assert found.optimizer_config == {"adam_beta2": 0.9}
    assert (found.fp8_shadow_interval, found.fp8_shadow_tolerance) == (None, None)
    assert fast.transformer_config["fp8"] == "hybrid"
