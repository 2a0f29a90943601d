"""ipt plan: a layout rank by rank, without the GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_ipt.cli import tables
from megatron_ipt.recipe import load_recipe, section
from megatron_ipt.settings import ModelSettings, TrainSettings

if TYPE_CHECKING:
    from megatron_ipt.plan.batches import Batch
    from megatron_ipt.plan.layout import Gathering

GIB = 2**30


def plan(
    recipe: Annotated[Path, typer.Argument(help="recipe, YAML")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    world_size: Annotated[
        int | None, typer.Option(min=1, help=r"GPUs of the whole job; default: one replica \[ranks]")
    ] = None,
) -> None:
    """Build every model-parallel rank of a recipe on this machine, without memory, and print what stands on each.

    Checks the layout, and every setting of megatron-core's configurations, as a run would.  Where model.load_hf is
    not there yet, the numbers under `model` must stand in the recipe.
    """
    settings = load_recipe(recipe, overrides or [])
    model: ModelSettings = section(settings, "model")
    train: TrainSettings = section(settings, "train")
    from megatron_ipt.architecture import check_layout, with_settings
    from megatron_ipt.convert.families import read_architecture

    there = model.load_hf is not None and model.load_hf.exists()
    architecture = with_settings(read_architecture(model.load_hf) if there and model.load_hf else None, model)
    world_size = world_size or train.model_parallel_size
    check_layout(architecture, train, world_size)
    from megatron_ipt.plan.layout import plan_layout  # megatron-core takes seconds to import: faults first

    found = plan_layout(architecture, model, train, world_size)
    columns = ("stage", "chunks", "layers", "parameters a rank", "static bytes a rank", "static GiB", "activations GiB")
    rows = [
        (
            *(stage.pipeline_rank, stage.chunks, stage.layers, stage.parameters),
            f"{stage.static_bytes:,.0f}",
            f"{stage.static_bytes / GIB:.2f}",
            f"{stage.activation_bytes / GIB:.2f}",
        )
        for stage in found.stages
    ]
    tables.show(f"{settings.name}: {found.ranks_built} model-parallel ranks built", columns, rows)
    facts = {
        "parameters": f"{architecture.parameters():,}",
        "parameters, vocabulary padded": f"{found.parameters:,} ({found.padded_vocab_size:,} tokens)",
        "data-parallel size": found.data_parallel_size,
        **({"context-parallel size": train.context_parallel_size} if train.context_parallel_size > 1 else {}),
        **({} if len(found.batches) > 1 else _of_a_step(found.batches[0])),
        "a checkpoint": f"{found.checkpoint_bytes:,} bytes",
        **_host_memory(found.gathering, train.nproc_per_node),
        **_host_copy(found.copied_bytes),
    }
    tables.show(f"{found.world_size} ranks", ("what", "figure"), list(facts.items()))
    if len(found.batches) > 1:
        of_ramp = ("from sample", "samples a step", "steps", *_of_a_step(found.batches[0]))
        ramp = [
            (batch.first_sample, batch.samples, batch.steps, *_of_a_step(batch).values()) for batch in found.batches
        ]
        tables.show("the batch, as it grows", of_ramp, ramp)
    tables.console().print(
        "static: weights, gradients, Adam's state, FP8 copies; activations: by arithmetic, at most; "
        "buffers and the libraries' own memory come on top"
    )


def _of_a_step(batch: Batch) -> dict[str, object]:
    return {
        "micro batches a step": batch.micro_batches,
        "pipeline bubble": f"{batch.bubble:.1%} of the compute time",
        "tokens a step": batch.tokens,
    }


def _host_memory(gathering: Gathering | None, node: int) -> dict[str, str]:
    """What a save gathers outside the GPUs, before its writer's copies."""
    if gathering is None:
        return {}
    return {
        "gathering ranks of a save": f"{gathering.ranks} of {node} on a node, on {gathering.nodes} node(s)",
        "host memory of a save": f"{gathering.bytes / GIB:.1f} GiB a node ({gathering.rank_bytes / GIB:.1f} a rank)",
    }


def _host_copy(copied: int | None) -> dict[str, str]:
    """What a save behind training holds outside the GPUs until it is written; making it needs the gathered besides."""
    return {} if copied is None else {"host copy of a save behind training": f"{copied / GIB:.1f} GiB a node"}
