"""The 8B example: its plan is the readme's, its environment explained, its script submits one node."""

from __future__ import annotations

import re
from pathlib import Path

from presets import ROOT, cells, check_environment, plans_of, submitted
from transformers import AutoConfig

from data_prep.settings import BlendSettings
from megatron_ipt.architecture import with_settings
from megatron_ipt.convert.families import FAMILIES
from megatron_ipt.recipe import load_recipe, load_settings, section

EXAMPLE = ROOT / "examples" / "llama3_8b_domain"
RECIPE = EXAMPLE / "recipe.yaml"
README = (EXAMPLE / "README.md").read_text(encoding="utf-8")
PARAMETERS = 128_256 * 4_096 * 2 + 32 * (4_096 * (2 * 4_096 + 2 * 1_024) + 3 * 4_096 * 14_336 + 2 * 4_096) + 4_096


def test_it_is_the_papers_run_on_llama3_8b() -> None:
    recipe = load_recipe(RECIPE)
    model, train = section(recipe, "model"), section(recipe, "train")
    blend = load_settings(BlendSettings, EXAMPLE / "blend.yaml")
    assert (blend.seq_length, blend.mode) == (train.seq_length, "paper_continual")
    assert blend.train_samples == train.train_iters * train.global_batch_size
    assert (train.global_batch_size * train.seq_length, train.lr, train.lr_decay_style) == (262_144, 1e-5, "cosine")
    architecture = with_settings(None, model)
    assert architecture.parameters() == PARAMETERS == 8_030_261_248
    written = FAMILIES[architecture.family].config_json(architecture, train.seq_length)
    assert AutoConfig.for_model(**written).architectures == ["LlamaForCausalLM"]


def test_every_rank_builds_and_the_figures_are_those_of_the_readme() -> None:
    """Half of the matrices and tables, all of the norms; bf16 weight 2, fp32 gradient 4, 12 over four replicas."""
    words = " ".join(README.split())
    fp8 = ["train.transformer_config.fp8=hybrid", "train.transformer_config.fp8_recipe=tensorwise"]
    assert f"`{' '.join(fp8)}`" in words
    alone = ["train.tensor_model_parallel_size=1", "train.sequence_parallel=false"]
    found = plans_of({name: (RECIPE, 8, given) for name, given in (("bf16", []), ("fp8", fp8), ("tp1", alone))})
    (stage,) = found["bf16"]["stages"]
    norms = 65 * 4_096
    held = (PARAMETERS - norms) // 2 + norms
    gib = {
        name: [plan["stages"][0][what] / 2**30 for what in ("static_bytes", "activation_bytes")]
        for name, plan in found.items()
    }
    (row,) = [cells(line) for line in README.splitlines() if re.match(r"\| \d \|", line)]
    sizes = [f"{size:.2f}" for size in gib["bf16"]]
    assert row == ["0", str(stage["chunks"]), str(stage["layers"]), f"{held:,}", f"{held * 9:,}", *sizes]
    assert (stage["parameters"], stage["static_bytes"]) == (held, held * 9)
    assert (found["bf16"]["ranks_built"], found["bf16"]["parameters"]) == (2, PARAMETERS)
    assert f"{PARAMETERS:,} parameters; {found['bf16']['batches'][0]['micro_batches']} micro batches a step" in words
    assert f"Together {sum(gib['bf16']):.1f} GiB" in words
    assert f"{gib['fp8'][0]:.2f} GiB static, {sum(gib['fp8']):.1f} together" in words
    assert "With TP 1 the two columns are {:.2f} and {:.2f}".format(*gib["tp1"]) in words
    assert f"one replica: {found['bf16']['gathering']['bytes'] / 2**30:.1f} GiB in the node's memory" in words


def test_the_figures_of_time_are_the_arithmetic() -> None:
    train = section(load_recipe(RECIPE), "train")
    tokens = train.train_iters * train.global_batch_size * train.seq_length
    rates = {row[1]: row[2] for row in map(cells, README.splitlines()) if len(row) == 3 and row[2].endswith(" h")}
    assert len(rates) == 3
    for rate, hours in rates.items():
        assert hours == f"{tokens / 8 / int(rate.replace(',', '')) / 3600:.1f} h"
    slowest = train.global_batch_size * train.seq_length / 8 / 6_667
    assert f"a save every\n{train.save_interval * slowest / 60:.0f} minutes" in README
    assert (
        train.train_iters // train.save_interval == 8
        and f"eight checkpoints of the run take {8 * 14 * PARAMETERS / 1e9:.0f} GB" in README
    )
    gather, checkpoint = 9 * 4_015_263_744 / 1e9, 14 * PARAMETERS / 1e9
    assert f"{gather:.0f} s over gloo" in README
    launch = (EXAMPLE / "launch.sh").read_text(encoding="utf-8")
    for told in (README, launch):
        assert f"{gather + 2 * checkpoint:.0f} s" in told


def test_every_environment_variable_is_explained() -> None:
    check_environment(EXAMPLE / "environment.sh")


def test_the_script_submits_one_node_of_eight_with_that_environment(tmp_path: Path) -> None:
    found = submitted(EXAMPLE / "launch.sh", tmp_path, "train.lr=2e-5")
    assert {"--nodes=1", "--gpus-per-node=8", "--signal=B:USR1@600"} <= found.options
    assert (found.script, found.recipe) == (ROOT / "tools" / "launch_slurm.sbatch", RECIPE)
    assert found.overrides == ["train.lr=2e-5"]
    assert found.environment["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert 261 + 5 < int(found.environment["SHUTDOWN_TIMEOUT"]) < 600  # the signal's lead
