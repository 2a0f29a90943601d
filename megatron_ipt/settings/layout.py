"""Settings of the layout: which rank computes what, and in which numbers."""

from __future__ import annotations

from typing import Literal, Self

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

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one replica; context-parallel ranks share a sequence, so they count as one."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    @model_validator(mode="after")
    def _layout_fits(self) -> Self:
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise ValueError("sequence_parallel needs tensor_model_parallel_size > 1")
        if self.virtual_pipeline_model_parallel_size and self.pipeline_model_parallel_size == 1:
            raise ValueError("virtual_pipeline_model_parallel_size needs pipeline_model_parallel_size > 1")
        if self.overlap_param_gather and not (self.use_distributed_optimizer and self.overlap_grad_reduce):
            raise ValueError("overlap_param_gather needs use_distributed_optimizer and overlap_grad_reduce")
        return self
