"""The paper's models from scratch: the recipes are of its numbers, and the readmes' figures what the commands print."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from presets import ROOT, cells, check_by_hand, check_environment, plans_of, submitted
from transformers import AutoConfig, AutoModelForCausalLM

from data_prep.settings import BlendSettings
from megatron_ipt.architecture import Architecture, check_layout, with_settings
from megatron_ipt.convert.families import FAMILIES
from megatron_ipt.recipe import Recipe, load_recipe, load_settings, section
from megatron_ipt.settings import TrainSettings
from megatron_ipt.training.flops import flops_per_token

GPT2 = 6 * (48 * 12 * 1_600**2 + 1_600 * 50_257), 12 * 48 * 1_024 * 1_600
"""FLOP a token of GPT-2's 1,558M: its matrices (tied logits once); its attention at 1,024, counted in full."""
PUBLISHED = {"6,667": 6_667.0, "46,811": 2**20 / 2.80 / 8}
"""Tokens/s and GPU: torchtitan's Llama-3-8B at 8,192, and llm.c's GPT-2, 2.80 s a step of 2^20 tokens on 8 GPUs."""


@dataclass(frozen=True)
class Preset:
    """One of the two, and what the paper says of it."""

    name: str
    world: int
    parameters: int
    tokens: int
    steps: int
    lr: float

    @property
    def folder(self) -> Path:
        return ROOT / "examples" / self.name

    @property
    def recipe(self) -> Recipe:
        return load_recipe(self.folder / "recipe.yaml")

    @property
    def train(self) -> TrainSettings:
        train: TrainSettings = section(self.recipe, "train")
        return train

    @property
    def architecture(self) -> Architecture:
        return with_settings(None, section(self.recipe, "model"))

    def text(self, name: str = "README.md") -> str:
        return (self.folder / name).read_text(encoding="utf-8")

    @property
    def words(self) -> str:
        return " ".join(self.text().split())


PRESETS = [
    Preset("from_scratch_500m", 8, 517_522_944, 524_288, 200_000, 3e-4),
    Preset("from_scratch_1.3b", 16, 1_347_504_128, 1_048_576, 100_000, 2e-4),
]
of_both = pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)


@of_both
def test_a_recipe_is_the_papers(preset: Preset) -> None:
    """Every sample of its blend is trained on once, and transformers builds the same model."""
    train, architecture = preset.train, preset.architecture
    check_layout(architecture, train, preset.world)
    told = (train.global_batch_size * train.seq_length, train.train_iters, train.lr)
    assert told == (preset.tokens, preset.steps, preset.lr)
    blend = load_settings(BlendSettings, preset.folder / "blend.yaml")
    assert (blend.seq_length, blend.mode) == (train.seq_length, "paper_from_scratch")
    assert blend.train_samples == train.train_iters * train.global_batch_size
    written = FAMILIES[architecture.family].config_json(architecture, train.seq_length)
    config = AutoConfig.for_model(**written)
    assert config.sliding_window == 2048
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config)
    assert type(theirs).__name__ == "MistralForCausalLM"
    assert sum(weight.numel() for weight in theirs.parameters()) == architecture.parameters() == preset.parameters


def test_either_file_writes_the_blend_of_both() -> None:
    settings = [load_settings(BlendSettings, preset.folder / "blend.yaml") for preset in PRESETS]
    small, large = (
        [*(source.prefix for source in blend.sources.values()), *blend.held_out.values()] for blend in settings
    )
    assert [path.resolve() for path in small] == [path.resolve() for path in large]
    assert settings[0].model_dump(exclude={"sources", "held_out"}) == settings[1].model_dump(
        exclude={"sources", "held_out"}
    )
    assert {preset.train.blend for preset in PRESETS} == {Path("data/from_scratch/blend.json")}


def test_every_rank_builds_and_the_figures_are_those_of_the_readme() -> None:
    """On the meta device, all ranks of both in one process.  bf16 weight 2, fp32 gradient 4, 12 over the replicas."""
    given = {preset.name: (preset.folder / "recipe.yaml", preset.world, ()) for preset in PRESETS}
    large = PRESETS[1]
    found = plans_of({**given, "one_node": (large.folder / "recipe.yaml", 8, ())})
    for preset in PRESETS:
        plan, readme = found[preset.name], preset.words
        (stage,) = plan["stages"]
        (row,) = [cells(line) for line in preset.text().splitlines() if re.match(r"\| \d \|", line)]
        sizes = [f"{stage[name] / 2**30:.2f}" for name in ("static_bytes", "activation_bytes")]
        counts = [str(stage[name]) for name in ("pipeline_rank", "chunks", "layers")]
        assert row == [*counts, f"{stage['parameters']:,}", f"{stage['static_bytes']:,.0f}", *sizes]
        assert stage["parameters"] == plan["parameters"] == preset.parameters
        assert stage["static_bytes"] == preset.parameters * (6 + 12 / preset.world)
        together = (stage["static_bytes"] + stage["activation_bytes"]) / 2**30
        assert f"Together {together:.1f} GiB" in readme
        assert f"{preset.parameters:,} parameters; {plan['batches'][0]['micro_batches']} micro batches" in readme
        assert f"one replica: {plan['gathering']['bytes'] / 2**30:.1f} GiB in the" in readme
        assert plan["checkpoint_bytes"] == 14 * preset.parameters
        assert f"ipt plan examples/{preset.name}/recipe.yaml --world-size {preset.world}" in readme
    assert f"({found['one_node']['stages'][0]['static_bytes'] / 2**30:.2f} GiB static)" in large.words
    assert found["one_node"]["batches"][0]["micro_batches"] == 2 * found[large.name]["batches"][0]["micro_batches"]


@of_both
def test_the_hours_are_derived_from_the_published_rates(preset: Preset) -> None:
    """Rate x the published model's FLOP a token / this model's."""
    train, readme = preset.train, preset.words
    tokens = train.train_iters * train.global_batch_size * train.seq_length
    assert f"{train.train_iters:,} steps of {preset.tokens:,} tokens: {tokens / 1e9:.1f}B tokens" in readme
    llama = with_settings(None, section(load_recipe(ROOT / "examples/llama3_8b_domain/recipe.yaml"), "model"))
    matrices, attention = GPT2
    theirs = {
        "6,667": flops_per_token(llama, 8_192),
        "46,811": (matrices + attention / 2, matrices + attention),
    }
    here = flops_per_token(preset.architecture, train.seq_length)
    expected = [
        [
            name,
            f"{rate * theirs[name][kind] / 1e12:.0f}",
            f"{rate * theirs[name][kind] / here[kind]:,.0f}",
            f"{tokens / preset.world / (rate * theirs[name][kind] / here[kind]) / 3600:.1f} h",
        ]
        for name, rate in PUBLISHED.items()
        for kind in (0, 1)
    ]
    rows = [cells(line) for line in preset.text().splitlines() if re.search(r"\d h \|$", line)]
    assert [row[1:] for row in rows] == expected
    assert f"here: {_powers(here)}" in readme or f"here {_powers(here)}" in readme


def _powers(flops: tuple[float, float]) -> str:
    return " and ".join(f"{value:.2e}".replace("e+0", "e") for value in flops)


@of_both
def test_a_save_fits_into_the_time_it_is_given(preset: Preset, tmp_path: Path) -> None:
    """The script's, which also submits the recipe under the environment beside it."""
    found = submitted(preset.folder / "launch.sh", tmp_path, "train.lr=2e-5", SBATCH_ARGS="--partition=h100")
    assert {f"--nodes={preset.world // 8}", "--gpus-per-node=8", "--partition=h100"} <= found.options
    assert (found.script, found.recipe) == (ROOT / "tools" / "launch_slurm.sbatch", preset.folder / "recipe.yaml")
    assert found.overrides == ["train.lr=2e-5"]
    assert found.environment["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    more = submitted(preset.folder / "launch.sh", tmp_path, NODES="4")
    assert "--nodes=4" in more.options
    (lead,) = [int(option.rpartition("@")[2]) for option in found.options if option.startswith("--signal=B:USR1@")]
    limit = int(found.environment["SHUTDOWN_TIMEOUT"])
    # what the other replicas have of the 12 bytes comes over gloo, then 14 bytes a weight are written and read
    gather = 12 * preset.parameters * (preset.world - 1) / preset.world / 1e9
    seconds = {speed: gather + 2 * 14 * preset.parameters / speed / 1e9 for speed in (1, 0.1)}
    hours = max(float(line.split()[-3]) for line in preset.text().splitlines() if line.endswith(" h |"))
    step = hours * 3600 / preset.steps
    validation = preset.train.eval_iters * step / 3  # forward alone
    assert seconds[0.1] + step + validation < limit < lead - 60
    told = f"{gather:.0f} s over gloo", f"{seconds[1]:.0f} s together at 1 GB/s, {seconds[0.1]:.0f} s at 0.1 GB/s"
    for figure in (*told, f"wait {limit} s", f"every {preset.train.save_interval * step / 60:.0f} minutes"):
        assert figure in preset.words
    script = " ".join(preset.text("launch.sh").replace("\n# ", " ").split())
    for figure in (f"hand ({step:.1f} s)", f"forward, {validation:.0f} s)", f"{seconds[0.1]:.0f} s at 0.1 GB/s"):
        assert figure in script
    assert f"every {preset.train.save_interval * step / 60:.0f} minutes" in preset.text("recipe.yaml")
    every = preset.train.save_retain_interval
    assert every and preset.train.most_recent_k
    stay = {*range(every, preset.steps + 1, every), preset.steps - preset.train.save_interval}
    assert f"{len(stay)} checkpoints that stay take {len(stay) * 14 * preset.parameters / 1e9:.0f} GB" in preset.words


@of_both
def test_every_environment_variable_is_explained(preset: Preset) -> None:
    check_environment(preset.folder / "environment.sh", least=4)


def test_the_line_to_start_by_hand_is_one_that_torchrun_takes() -> None:
    limit = check_by_hand(PRESETS[1].folder, nodes=2)
    assert f'SHUTDOWN_TIMEOUT:-{limit}}}"' in PRESETS[1].text("launch.sh")
