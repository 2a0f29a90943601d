"""What megatron-core and the real Transformer Engine make of our settings, as JSON; run by test_engine.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import engine_facts
from pretend_gpu import gpu

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture, padded_vocab_size, with_settings
from megatron_ipt.convert import parts
from megatron_ipt.mcore import config, device, dry, low_precision, parallel, user_buffers
from megatron_ipt.mcore import model as models
from megatron_ipt.recipe import load_recipe, section
from megatron_ipt.settings import TrainSettings

# isort: split
import torch
from megatron.core import fp8_utils
from megatron.core.transformer.cuda_graphs import TECudaGraphHelper

ROOT = Path(__file__).parents[2]
TINY = Architecture(4, 64, 192, 8, 4, 8, 1e-5, 1e4, 512)
PRESETS = {
    "from_scratch_500m/recipe.yaml": 8,
    "from_scratch_1.3b/recipe.yaml": 16,
    "llama3_8b_domain/recipe.yaml": 8,
    "llama3_70b_domain/recipe.yaml": 64,
    "llama3_70b_domain/recipe_256.yaml": 256,
}
HYBRID = {"fp8": "hybrid", "fp8_recipe": "tensorwise"}


def settings(**changed: Any) -> TrainSettings:
    given = {"global_batch_size": 1, "seq_length": 64, "train_iters": 1, "lr": 1e-3, **changed}
    return TrainSettings(**{"transformer_impl": "transformer_engine", **given})


@contextmanager
def built(architecture: Architecture, train: TrainSettings, rank: int = 0, world: int = 1, vocab: int = 512) -> Any:
    """A rank's chunks with Transformer Engine's layers, on the meta device."""
    with dry.fake_group(rank, world), parallel.model_parallel(train, with_gloo=False):
        found = config.transformer_config(architecture, train)
        found.use_cpu_initialization = found.perform_initialization = False
        with gpu():
            yield models.build(architecture, found, train, vocab, place="meta")


def presets() -> Iterator[tuple[str, Any]]:
    """Of the first rank of each stage: what Transformer Engine's layers hold, and what the dry build of `ipt plan`."""
    for name, world in PRESETS.items():
        recipe = load_recipe(ROOT / "examples" / name, [])
        train = section(recipe, "train").model_copy(update={"transformer_impl": "transformer_engine"})
        model = section(recipe, "model")
        architecture = with_settings(None, model)
        vocab = padded_vocab_size(architecture, model, train)
        stages = train.pipeline_model_parallel_size
        told = []
        for rank in range(0, world, world // stages):
            with built(architecture, train, rank, world, vocab) as chunks:
                named = [(name, tuple(weight.shape)) for name, weight in models.named_parameters(chunks)]
            local = dry.build_rank(architecture, train, vocab, rank, world).parameters
            told.append(
                [hugging_face(named, architecture), hugging_face([(w.name, w.shape) for w in local], architecture)]
            )
        yield name, told


def hugging_face(named: Any, architecture: Architecture) -> list[Any]:
    """Names of the Hugging Face tensors that these weights are parts of, and how many numbers they hold."""
    tensors = sorted(
        tensor
        for name, _ in named
        for tensor in parts.FAMILIES[architecture.family].weights_of(name, architecture).names
    )
    return [tensors, sum(torch.Size(shape).numel() for _, shape in named)]


def recipes() -> Iterator[tuple[str, str]]:
    """The recipe of Transformer Engine that megatron-core makes of ours."""
    for name in ("delayed", "tensorwise", "blockwise", "mxfp8"):
        for form in ("hybrid", "e4m3"):
            own = {"fp8": form, "fp8_recipe": name}
            found = config.transformer_config(TINY, settings(transformer_config=own))
            made = fp8_utils.get_fp8_recipe(found)
            yield f"{name} {form}", f"{type(made).__name__} {made.fp8_format.name}"


def without_fp8() -> list[Any]:
    """The context that a layer computes in: FP8, then within `full_precision`, then FP8 again."""
    with built(TINY, settings(transformer_config=HYBRID)) as chunks:
        of = chunks[0].config
        told: list[Any] = [of.fp8]
        with low_precision.full_precision(chunks):
            told.append(isinstance(fp8_utils.get_fp8_context(of, 0), nullcontext))
        return [*told, of.fp8]


def overlap() -> list[Any]:
    """A layer's products by Transformer Engine's name, and the line of a machine that has no buffers."""
    both = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    train = settings(**both, transformer_config={"tp_comm_overlap": True})
    engine_facts.base._ub_initialized = True  # a layer refuses to be made before the buffers
    with built(TINY, train, world=2) as chunks:
        layer = chunks[0].decoder.layers[0]
        linears = (
            layer.self_attention.linear_qkv,
            layer.self_attention.linear_proj,
            layer.mlp.linear_fc1,
            layer.mlp.linear_fc2,
        )
        told: list[Any] = [
            [linear.ub_name, linear.ub_overlap_ag_fprop, linear.ub_overlap_rs_fprop] for linear in linears
        ]
        of = chunks[0].config
    engine_facts.base._ub_initialized = False
    try:
        user_buffers.allocate(of, train)
    except UserError as error:
        told.append(str(error))
    return told


def captured() -> int:
    """How many layers megatron-core's helper would capture; Transformer Engine's generators need a driver."""
    parallel.generators = lambda *_: {}
    with built(TINY, settings(transformer_config={"cuda_graph_impl": "transformer_engine"})) as chunks:
        helper = TECudaGraphHelper(model=chunks, config=chunks[0].config, seq_length=64, micro_batch_size=1)
        return len(helper.flattened_callables)


def short_states() -> list[Any]:
    """OptimizerConfig made by megatron-core itself, which asks Transformer Engine's FusedAdam for its arguments."""
    own = {"use_precision_aware_optimizer": True, "exp_avg_dtype": "bfloat16", "exp_avg_sq_dtype": "bfloat16"}
    with gpu():
        assert device.has_transformer_engine()
        made = config.optimizer_config(settings(optimizer_config=own))
    return [made.use_precision_aware_optimizer, made.store_param_remainders, str(made.exp_avg_dtype)]


def cards() -> dict[str, str]:
    told = {}
    for capability in ((8, 0), (9, 0), (10, 0)):
        with gpu(capability):
            torch.cuda.get_device_name = lambda *_: "pretended"
            train = settings(transformer_config={"fp8": "e4m3", "fp8_recipe": "mxfp8"}, seq_length=512)
            try:
                config.check_runs_here(config.transformer_config(TINY, train), train)
                told[str(capability)] = "runs"
            except UserError as error:
                told[str(capability)] = str(error)
    return told


def main() -> None:
    found = {
        "presets": dict(presets()),
        "recipes": dict(recipes()),
        "without_fp8": without_fp8(),
        "overlap": overlap(),
        "captured": captured(),
        "short_states": short_states(),
        "cards": cards(),
        "facts": engine_facts.facts(),
    }
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")


main()
