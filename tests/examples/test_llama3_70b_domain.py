"""The 70B example: its settings are legal, every rank builds, and wrong settings are told in one line."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from forks import forked_python, warm_python
from presets import ROOT, cells, check_by_hand, check_environment, submitted

from data_prep.settings import BlendSettings
from megatron_ipt.recipe import load_recipe, load_settings, section

EXAMPLE = ROOT / "examples" / "llama3_70b_domain"
RECIPE = EXAMPLE / "recipe.yaml"
RECIPE_256 = EXAMPLE / "recipe_256.yaml"
README = (EXAMPLE / "README.md").read_text(encoding="utf-8")
STAND_IN = ROOT / "tests" / "megatron_ipt"

PLAN = f"""
import json
from dataclasses import asdict
from pathlib import Path
from megatron_ipt.architecture import with_settings
from megatron_ipt.mcore import config
from megatron_ipt.plan.layout import plan_layout
from megatron_ipt.recipe import load_recipe

checked = []
check = config.optimizer_config
config.optimizer_config = lambda train: checked.append(train) or check(train)
found = {{}}
def plan(world, *overrides, path={str(RECIPE)!r}):
    recipe = load_recipe(Path(path), overrides)
    return asdict(plan_layout(with_settings(None, recipe.model), recipe.model, recipe.train, world))
for padding in (1, 128):
    found[padding] = plan(64, f"model.make_vocab_size_divisible_by={{padding}}")
found["one_replica"] = plan(32)
found["256"] = plan(256, path={str(RECIPE_256)!r})
found["bf16"] = plan(64, "train.transformer_config.fp8=null")
recompute = ("granularity=full", "method=uniform", "num_layers=1")
found["recomputed"] = plan(64, *("train.recompute_" + setting for setting in recompute))
recipe = load_recipe(Path({str(RECIPE)!r}))
architecture = with_settings(None, recipe.model)
built = config.transformer_config(architecture, recipe.train)
found["checks"] = len(checked)
found["fp8"] = [built.fp8, built.fp8_recipe]
print(json.dumps(found))
"""

SPEC = f"""
import json, sys
sys.path.insert(0, {str(STAND_IN)!r})
import transformer_engine_stand_in
from pathlib import Path
from megatron_ipt.architecture import with_settings
from megatron_ipt.mcore import config, dry, layers, parallel
from megatron_ipt.recipe import load_recipe

recipe = load_recipe(Path({str(RECIPE)!r}), ["train.transformer_impl=transformer_engine"])
with dry.fake_group(0, 64), parallel.model_parallel(recipe.train, with_gloo=False):
    spec = layers.block_spec(config.transformer_config(with_settings(None, recipe.model), recipe.train), 0)
def submodules(part):
    return part.keywords["submodules"] if hasattr(part, "keywords") else part.submodules
layer = submodules(spec.layer_specs[0])
attention, mlp = submodules(layer.self_attention), submodules(layer.mlp)
parts = [attention.linear_qkv, attention.core_attention, attention.linear_proj, mlp.linear_fc1, mlp.linear_fc2]
print(json.dumps([len(spec.layer_specs), *(getattr(part, "__name__", str(part)) for part in parts)]))
"""


def test_its_blend_is_of_the_recipes_length() -> None:
    blend, train = load_settings(BlendSettings, EXAMPLE / "blend.yaml"), section(load_recipe(RECIPE), "train")
    assert (blend.seq_length, blend.mode) == (train.seq_length, "paper_continual")
    assert blend.train_samples == train.train_iters * train.global_batch_size
    assert str(train.blend.parent) in README


def test_every_model_parallel_rank_builds_and_the_weights_add_up() -> None:
    """By arithmetic: a layer has 855,654,400 weights, an embedding 128,256 x 8,192; TP 4, PP 8, 10 layers a stage."""
    found = forked_python(PLAN)
    plain, padded = found["1"], found["128"]
    assert found["fp8"] == ["hybrid", "tensorwise"]
    assert found["checks"] == 6  # once a plan, not once a rank
    assert plain["ranks_built"] == padded["ranks_built"] == 32
    assert [stage["parameters"] for stage in plain["stages"]] == [2_401_927_168, *[2_139_258_880] * 6, 2_401_935_360]
    assert plain["parameters"] == 70_553_706_496
    assert padded["parameters"] == 70_557_900_800
    assert padded["padded_vocab_size"] == 128_512
    assert {(stage["chunks"], stage["layers"]) for stage in plain["stages"]} == {(5, 10)}
    # bf16 weight 2, fp32 gradient 4, 12 of Adam's state and masters over two replicas; 2 of the layers' matrices in FP8
    matrices = 10 * (855_654_400 - 2 * 8_192) // 4
    assert plain["stages"][0]["static_bytes"] == 2_401_927_168 * 12 + 2 * matrices
    # 14 and 0 passes before the interleaved schedule's 32, one more in hand, of 2 layers; 137,216 numbers a token
    layer = 4_096 * 2 * 137_216 // 4
    kept = [stage["activation_bytes"] for stage in plain["stages"]]
    assert (kept[0], kept[7]) == (94 * layer, 66 * layer)
    # a node is a stage: tensor-parallel ranks, then replicas, then stages
    assert padded["gathering"] == {
        "nodes": 8,
        "ranks": 4,
        "bytes": 4 * 12 * 2_402_459_648,
        "rank_bytes": 12 * 2_402_459_648,
    }
    assert padded["checkpoint_bytes"] == 14 * 70_557_900_800
    # one replica: the last node holds two stages, and all of its ranks gather
    assert found["one_replica"]["gathering"]["bytes"] == 4 * 12 * (2_139_258_880 + 2_402_459_648)
    assert found["bf16"]["stages"][0]["static_bytes"] == 2_402_451_456 * 12
    # recomputed whole: the input of each of its 10 layers instead, 8,192 numbers over 4 ranks, and one layer at a time
    assert found["recomputed"]["stages"][0]["activation_bytes"] == 94 * 4_096 * 2 * 8_192 // 4 + layer
    assert [batch["micro_batches"] for batch in plain["batches"]] == [32]
    check_256(found["256"])


def check_256(found: Any) -> None:
    """By arithmetic: a rank has an eighth of the matrices of 20 layers, all of their norms, an eighth of a table."""
    layers = 20 * ((855_654_400 - 2 * 8_192) // 8 + 2 * 8_192)
    table = 128_512 // 8 * 8_192
    assert [stage["parameters"] for stage in found["stages"]] == [
        layers + table,
        layers,
        layers,
        layers + table + 8_192,
    ]
    assert (found["ranks_built"], found["padded_vocab_size"]) == (32, 128_512)
    assert [batch["micro_batches"] for batch in found["batches"]] == [8]
    rows = [cells(line) for line in README.splitlines() if re.match(r"\| \d \| 10 \|", line)]
    for stage, row in zip(found["stages"], rows, strict=True):
        sizes = [f"{stage[name] / 2**30:.2f}" for name in ("static_bytes", "activation_bytes")]
        assert row[1:] == [str(stage["chunks"]), str(stage["layers"]), f"{stage['parameters']:,}", *sizes]
    assert f"{3 / (8 * 10):.1%}".replace("%", " %") in README and f"{7 / (8 * 5):.1%}".replace("%", " %") in README


def test_on_256_gpus_only_the_layout_differs() -> None:
    few, many = (section(load_recipe(path), "train").model_dump() for path in (RECIPE, RECIPE_256))
    assert {name for name in few if few[name] != many[name]} == {
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "virtual_pipeline_model_parallel_size",
        "save_interval",
    }
    model, same = section(load_recipe(RECIPE), "model"), section(load_recipe(RECIPE_256), "model")
    assert same.model_copy(update={"make_vocab_size_divisible_by": 128}) == model


def test_the_verb_prints_the_table_of_the_readme() -> None:
    call = next(line.split() for line in README.splitlines() if line.strip().startswith("ipt plan"))
    command = [warm_python(), "-m", "megatron_ipt.cli.main", *call[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [cells(line) for line in done.stdout.splitlines() if line.startswith("│")]
    printed = {row[0]: row[1:] for row in lines}
    rows = [cells(line) for line in README.splitlines() if re.match(r"\| \d \| 5 \|", line)]
    expected: dict[str, list[str]] = {}
    for first, *figures in rows:
        ends = [int(number) for number in first.split(" to ")]
        expected |= {str(stage): figures for stage in range(ends[0], ends[-1] + 1)}
    assert [len(figures) for figures in expected.values()] == [6] * 8
    assert {stage: printed[stage] for stage in expected} == expected
    assert printed["parameters"] == ["70,553,706,496"]
    assert printed["parameters, vocabulary padded"] == ["70,557,900,800 (128,512 tokens)"]
    assert printed["data-parallel size"] == ["2"]
    assert printed["gathering ranks of a save"] == ["4 of 8 on a node, on 8 node(s)"]
    assert printed["host memory of a save"] == ["107.4 GiB a node (26.8 a rank)"]
    assert printed["micro batches a step"] == ["32"]
    assert printed["pipeline bubble"] == ["4.4% of the compute time"]  # 7 / (32 x 5)
    told = " ".join(README.split())
    for figure in ("70,553,706,496 parameters", "70,557,900,800 with the vocabulary padded to 128,512", "4.4 %"):
        assert figure in told


def test_the_figures_of_a_save_are_the_arithmetic() -> None:
    train = section(load_recipe(RECIPE), "train")
    step = train.global_batch_size * train.seq_length / (64 * 1_640)
    assert f"every {train.save_interval * step / 60:.0f} minutes" in RECIPE.read_text(encoding="utf-8")
    checkpoint = 14 * 70_557_900_800
    gather = 6 * 2_402_459_648 / 1e9  # half of the 12 bytes comes from the other replica
    rows = {row[0].split(" ")[0].rstrip(",:"): row[2:] for row in map(cells, README.splitlines()) if len(row) == 4}
    for column, speed in enumerate((10e9, 2e9)):
        assert rows["gather"][column] == f"{gather:.0f} s"
        assert rows["write"][column] == rows["read"][column] == f"{checkpoint / speed:.0f} s"
        assert rows["together"][column] == f"{(gather + 2 * checkpoint / speed) / 60:.1f} min"
    tokens = train.train_iters * train.global_batch_size * train.seq_length
    saves = train.train_iters // train.save_interval
    told = " ".join(README.split())
    assert saves == 4 and f"four of the run take {saves * checkpoint / 1e12:.1f} TB" in told
    assert f"{tokens / 64 / 1_640 / 3600:.1f} hours" in told
    assert f"{tokens / 256 / 1_640 / 60:.0f} minutes" in told
    assert (
        f"{512 * 8_192 / 256:,.0f} tokens a GPU and step" in told
        and f": {tokens / 256 / 876 / 3600:.1f} hours." in told
    )
    slowest = gather + 2 * checkpoint / 1.4e9
    launch = (EXAMPLE / "launch.sh").read_text(encoding="utf-8")
    assert f"{slowest:,.0f} s at 1.4 GB/s" in launch
    assert slowest + step + 20 < 1500


def test_the_example_is_made_of_transformer_engines_layers() -> None:
    found = forked_python(SPEC, warm="plain")  # a stand-in comes before megatron-core
    assert found == [
        2,
        "TELayerNormColumnParallelLinear",
        "TEDotProductAttention",
        "TERowParallelLinear",
        "TELayerNormColumnParallelLinear",
        "TERowParallelLinear",
    ]


WRONG = {
    "train.transformer_config.fp8_recipe=current": "'current' is not legal; use one of tensorwise",
    "train.transformer_config.fp8=e5m2": "'e5m2' is not legal; use one of e4m3, hybrid",
    "train.transformer_config.fp8_recipee=delayed": "did you mean 'fp8_recipe'",
    "train.optimizer_config.adam_beta3=0.9": "OptimizerConfig has no such field",
    "train.ddp_config.overlap=true": "DistributedDataParallelConfig has no such field",
    "train.tensor_model_paralel_size=4": "did you mean 'tensor_model_parallel_size'",
    "train.tensor_model_parallel_size=5": "5 does not divide num_attention_heads (64); use one of 1, 2, 4, 8",
    "train.virtual_pipeline_model_parallel_size=3": "3 does not divide the layers of a stage (10); use one of 2, 5, 10",
}


def test_a_wrong_setting_is_one_line_with_the_mend() -> None:
    """All in one process, as the verb runs them: megatron-core takes seconds to import."""
    code = f"""
import contextlib, io, json
from megatron_ipt.cli import main
import sys
told = {{}}
for override in {list(WRONG)!r}:
    sys.argv = ["ipt", "plan", {str(RECIPE)!r}, "--world-size", "64", override]
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            main.main()
        except SystemExit as end:
            told[override] = [end.code, stderr.getvalue()]
print(json.dumps(told))
"""
    found = forked_python(code)
    for override, expected in WRONG.items():
        status, stderr = found[override]
        assert status == 1, override
        assert stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
        assert expected in stderr


def test_every_environment_variable_is_explained() -> None:
    check_environment(EXAMPLE / "environment.sh")


@pytest.mark.parametrize(("nodes", "recipe"), [({}, RECIPE), ({"NODES": "32"}, RECIPE_256)])
def test_the_script_submits_nodes_of_eight_with_that_environment(
    tmp_path: Path, nodes: dict[str, str], recipe: Path
) -> None:
    found = submitted(EXAMPLE / "launch.sh", tmp_path, "train.lr=2e-5", SBATCH_ARGS="--partition=h100", **nodes)
    count = nodes.get("NODES", "8")
    assert {f"--nodes={count}", "--gpus-per-node=8", "--signal=B:USR1@1800", "--partition=h100"} <= found.options
    assert (found.script, found.recipe) == (ROOT / "tools" / "launch_slurm.sbatch", recipe)
    assert found.script.exists()
    assert found.overrides == ["train.lr=2e-5"]
    assert found.environment["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert int(found.environment["SHUTDOWN_TIMEOUT"]) < 1800  # the signal's lead


def test_another_number_of_nodes_is_refused_in_a_line() -> None:
    done = subprocess.run(
        [EXAMPLE / "launch.sh"], env={**os.environ, "NODES": "5"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "error: NODES=5: there are recipes for 8 and 32 nodes of 8 GPUs; use one of them\n"


def test_the_line_to_start_by_hand_is_one_that_torchrun_takes() -> None:
    limit = check_by_hand(EXAMPLE, nodes=8)
    assert f'SHUTDOWN_TIMEOUT:-{limit}}}"' in (EXAMPLE / "launch.sh").read_text(encoding="utf-8")
