"""Settings of the layout: which rank computes what, and in which numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from data_prep.settings import Settings


class LayoutSettings(Settings):
    """How the work is divided over ranks.  What stands here may change at a restart: a step computes the same."""

    nproc_per_node: int = Field(1, ge=1, description="processes `ipt train` starts on this machine (torchrun's name)")
    tensor_model_parallel_size: int = Field(1, ge=1, description="ways each layer's matrices are split")
    pipeline_model_parallel_size: int = Field(1, ge=1, description="stages the layers are split into")
    virtual_pipeline_model_parallel_size: int | None = Field(
        None, ge=2, description="model chunks a pipeline rank holds (interleaved schedule)"
    )
    pipeline_model_parallel_layout: str | None = Field(
        None,
        description="chunks in the order a token passes them, as `Et*3|(tt|)*6tL`: E embedding, t layer, L loss; "
        "pipeline ranks take turns, so twice as many chunks as stages are two a rank",
    )
    num_layers_in_first_pipeline_stage: int | None = Field(None, ge=1, description="uneven stages: layers of the first")
    num_layers_in_last_pipeline_stage: int | None = Field(None, ge=1, description="uneven stages: layers of the last")
    recompute_granularity: Literal["full", "selective"] | None = Field(
        None, description="activations computed again in the backward pass: of whole layers, or of recompute_modules"
    )
    recompute_method: Literal["uniform", "block"] | None = Field(
        None, description="full: all layers, in groups of recompute_num_layers; or the first so many of each chunk"
    )
    recompute_num_layers: int | None = Field(None, ge=1, description="full: layers of a group, or of a chunk [layers]")
    recompute_modules: list[Literal["core_attn", "mlp", "layernorm"]] | None = Field(
        None, min_length=1, description="selective: what of each layer; default core_attn"
    )
    context_parallel_size: int = Field(1, ge=1, description="ways each sequence is split; each rank has 2 chunks of it")
    sequence_parallel: bool = Field(False, description="split norms over the sequence too; needs tensor parallelism")
    micro_batch_size: int = Field(1, ge=1, description="sequences of one forward pass on one rank [samples]")
    bf16: bool = Field(True, description="parameters and activations in bfloat16, masters in fp32; false: all fp32")
    use_distributed_optimizer: bool = Field(True, description="shard optimizer state over data-parallel ranks")
    overlap_grad_reduce: bool = Field(False, description="reduce gradients while the backward pass runs")
    overlap_param_gather: bool = Field(False, description="gather parameters while the forward pass runs")
    transformer_impl: Literal["auto", "local", "transformer_engine"] = Field(
        "auto", description="whose layers: Transformer Engine's, megatron-core's local ones; auto: TE where it imports"
    )

    tp_comm_overlap_cfg: Path | None = Field(
        None, description="Megatron's YAML for transformer_config.tp_comm_overlap: how each product overlaps"
    )
    tp_comm_bootstrap_backend: Literal["nccl", "mpi", "gloo"] = Field(
        "nccl", description="through which the buffers of tp_comm_overlap find each other at the start"
    )

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one replica; context-parallel ranks share a sequence, so they count as one."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    @model_validator(mode="before")
    @classmethod
    def _layout_says_how_many_chunks(cls, given: Any) -> Any:
        """Megatron's groups and schedule go by virtual_pipeline_model_parallel_size alone, so it follows the layout."""
        if not isinstance(given, dict) or not isinstance(given.get("pipeline_model_parallel_layout"), str):
            return given
        stages = given.get("pipeline_model_parallel_size", 1)
        if given.get("virtual_pipeline_model_parallel_size") is not None or not isinstance(stages, int) or stages < 1:
            return given
        chunks = len(chunks_of(given["pipeline_model_parallel_layout"]))
        several = chunks > stages and chunks % stages == 0
        return {**given, "virtual_pipeline_model_parallel_size": chunks // stages} if several else given

    @model_validator(mode="after")
    def _layout_fits(self) -> Self:
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise ValueError("sequence_parallel needs tensor_model_parallel_size > 1")
        for name in (
            "virtual_pipeline_model_parallel_size",
            "pipeline_model_parallel_layout",
            "num_layers_in_first_pipeline_stage",
            "num_layers_in_last_pipeline_stage",
        ):
            if getattr(self, name) and self.pipeline_model_parallel_size == 1:
                raise ValueError(f"{name} needs pipeline_model_parallel_size > 1")
        if self.pipeline_model_parallel_layout:
            self._check_layout_string(self.pipeline_model_parallel_layout)
        if self.overlap_param_gather and not (self.use_distributed_optimizer and self.overlap_grad_reduce):
            raise ValueError("overlap_param_gather needs use_distributed_optimizer and overlap_grad_reduce")
        return self

    def _check_layout_string(self, layout: str) -> None:
        """ValueError for a layout that cannot be whatever the model; `architecture.stage_layers` counts its layers."""
        if self.num_layers_in_first_pipeline_stage or self.num_layers_in_last_pipeline_stage:
            raise ValueError("pipeline_model_parallel_layout says it all: leave out num_layers_in_..._pipeline_stage")
        chunks, stages = chunks_of(layout), self.pipeline_model_parallel_size
        if not re.fullmatch(r"E[t|]*L", "|".join(chunks)):
            legal = "use E first, L last, and only t and | between them, with (...)*n and t*n for repetition"
            raise ValueError(f"pipeline_model_parallel_layout={layout}: {legal}")
        if not all(chunks):
            raise ValueError(f"pipeline_model_parallel_layout={layout}: chunk {chunks.index('') + 1} has no layer")
        if len(chunks) != stages * (self.virtual_pipeline_model_parallel_size or 1):
            virtual = self.virtual_pipeline_model_parallel_size
            wanted = (
                f"{stages} x virtual_pipeline_model_parallel_size {virtual}" if virtual else f"{stages} or {2 * stages}"
            )
            raise ValueError(f"pipeline_model_parallel_layout={layout} has {len(chunks)} chunks: use {wanted}")

    @model_validator(mode="after")
    def _recomputation_fits(self) -> Self:
        needs = {
            None: (),
            "full": ("recompute_method", "recompute_num_layers"),
            "selective": (),
        }[self.recompute_granularity]
        takes = {*needs, *(("recompute_modules",) if self.recompute_granularity == "selective" else ())}
        for name in ("recompute_method", "recompute_num_layers", "recompute_modules"):
            given = getattr(self, name) is not None
            if given and name not in takes:
                goes = "selective" if name == "recompute_modules" else "full"
                raise ValueError(f"{name} goes with recompute_granularity: {goes}, and only with it")
            if name in needs and not given:
                raise ValueError(f"recompute_granularity: full needs {name}")
        return self


def chunks_of(layout: str) -> tuple[str, ...]:
    """A layout's chunks with its repetitions written out, as Megatron reads it: `Et,(tt|)*2L` -> Ett, tt, L."""
    text, before = layout.replace(",", ""), ""
    while text != before:
        text, before = re.sub(r"(?:\(([^()]*)\)|([^()*]))\*(\d+)", _repeated, text), text
    return tuple(text.split("|"))


def _repeated(found: re.Match[str]) -> str:
    part: str = found[2] if found[1] is None else found[1]
    return part * int(found[3])
