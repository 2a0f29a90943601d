"""The cases that training's speed is measured on, what each side is told, and what a machine must have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_cases import CASES, case_named, changed
from training_jobs import job, products, recipe, script_arguments
from training_limits import check

from data_prep.errors import UserError
from megatron_ipt.recipe import Recipe

CPU: dict[str, Any] = {"device": "a CPU", "gpus": 0, "transformer_engine": False}
H200: dict[str, Any] = {
    "device": "NVIDIA H200",
    "gpus": 1,
    "memory_bytes": 150.1e9,
    "capability": [9, 0],
    "transformer_engine": True,
}


def test_every_case_is_a_recipe() -> None:
    for case in CASES.values():
        Recipe.model_validate(recipe(case, Path("run"), Path("blend.json")))


def test_what_fp8_asks_of_other_configurations_is_told_to_the_bare_loop() -> None:
    told = job(CASES["8b-fp8"], "transformer_engine", Path("tokens.bin"), 4)
    assert told.transformer_config["fp8"] == "hybrid" and told.transformer_config["fp8_recipe"] == "tensorwise"
    assert told.optimizer_config["fp8_recipe"] == "tensorwise" and told.ddp_config == {"fp8_param_gather": True}
    plain = job(CASES["8b-bf16"], "transformer_engine", Path("tokens.bin"), 4)
    assert "fp8_recipe" not in plain.optimizer_config and plain.ddp_config == {}


def test_a_change_reaches_both_sides_and_leaves_the_case_as_it_was() -> None:
    case = changed(CASES["8b-fp8"], ["recompute_num_layers=8", "transformer_config.fp8_margin=1"])
    assert recipe(case, Path("run"), Path("b"))["train"]["recompute_num_layers"] == 8
    told = job(case, "local", Path("tokens.bin"), 4).transformer_config
    assert told["recompute_num_layers"] == 8 and told["fp8_margin"] == 1
    assert CASES["8b-fp8"].train["recompute_num_layers"] == 16
    assert "fp8_margin" not in CASES["8b-fp8"].train["transformer_config"]


def test_a_setting_that_the_bare_loop_lacks_is_not_left_to_one_side() -> None:
    with pytest.raises(UserError, match=r"train\.spike_sigma: the bare loop has no such setting"):
        job(changed(CASES["8b-bf16"], ["spike_sigma=3"]), "local", Path("t"), 4)


def test_products_are_those_of_the_model() -> None:
    model = CASES["8b-bf16"].model
    attention = model["hidden_size"] * (32 + 8 + 8 + 32) * 128
    mlp = 3 * model["hidden_size"] * model["ffn_hidden_size"]
    weights = 32 * (attention + mlp) + model["hidden_size"] * model["vocab_size"]
    assert sum(k * n * times for _, k, n, times in products(CASES["8b-bf16"])) == weights
    assert {m for m, *_ in products(CASES["8b-bf16"])} == {8192}
    whole, half = products(CASES["8m-one-process"]), products(CASES["8m-two-parts"])
    assert [2 * k * n for _, k, n, _ in half] == [k * n for _, k, n, _ in whole]


def test_another_loop_is_told_the_same_sizes_or_refused() -> None:
    assert script_arguments(CASES["8m-two-stages"])[1:] == [
        *("--pp=2", "--gbs=4", "--mbs=2", "--steps=25", "--bf16", "--dist-opt"),
    ]
    with pytest.raises(UserError, match=r"--bare: its train\.py has no hang_seconds"):
        script_arguments(CASES["llama3.2-1b-fp8"])


@pytest.mark.parametrize(
    ("name", "machine", "standing", "line"),
    [
        ("8b-fp8", CPU, 0, r"--case 8b-fp8: needs a GPU, .* 8m-two-parts, or --dry-run 8b-fp8"),
        ("8m-two-parts", H200, 0, r"needs 2 GPUs, and there is 1; use a case of one process"),
        ("8b-fp8", {**H200, "transformer_engine": False}, 0, r"FP8 layers, .* use llama3\.2-1b-bf16$"),
        ("8b-bf16", {**H200, "transformer_engine": False}, 0, r"Transformer Engine's Adam with 16-bit moments"),
        ("8b-fp8", {**H200, "capability": [8, 0]}, 0, r"FP8 needs compute capability 8\.9, NVIDIA H200 has 8\.0"),
        ("8b-bf16", {**H200, "memory_bytes": 84.9e9}, 98.5e9, r"98 GB stand on a card, NVIDIA H200 has 85; use"),
    ],
)
def test_what_a_machine_lacks_is_one_line_with_the_mend(
    name: str, machine: dict[str, Any], standing: int, line: str
) -> None:
    with pytest.raises(UserError, match=line):
        check(name, CASES[name], machine, standing)


def test_a_machine_that_has_all_is_let_through() -> None:
    check("8b-fp8", CASES["8b-fp8"], H200, int(114.6e9))
    check("8m-two-parts", CASES["8m-two-parts"], CPU, 0)
    check("llama3.2-1b-bf16", CASES["llama3.2-1b-bf16"], {**H200, "transformer_engine": False}, 0)


def test_a_name_that_is_none_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean '8b-fp8'"):
        case_named("8b-fp9")
