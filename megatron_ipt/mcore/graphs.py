"""CUDA graphs in a run: when Transformer Engine's are captured, and their end; what they ask for: graph_rules.py."""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

from collections.abc import Callable, Sequence

from megatron.core.distributed import DistributedDataParallel
from megatron.core.num_microbatches_calculator import (
    init_num_microbatches_calculator,
    unset_num_microbatches_calculator,
)
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.transformer.cuda_graphs import TECudaGraphHelper, delete_cuda_graphs

from megatron_ipt.mcore import context
from megatron_ipt.mcore.graph_rules import implementation
from megatron_ipt.settings import TrainSettings


class Graphs:
    """The graphs of one run.  megatron-core's own (`local`) are captured by its schedule.

    `replicas`: data-parallel size, by which a step's micro batches are counted.
    """

    def __init__(
        self,
        train: TrainSettings,
        chunks: Sequence[DistributedDataParallel],
        optimizer: MegatronOptimizer,
        *,
        rank: int,
        replicas: int,
    ) -> None:
        self.chunks = list(chunks)
        self.helper: TECudaGraphHelper | None = None
        self.kind = implementation(train)
        if self.kind != "none":
            init_num_microbatches_calculator(
                rank=rank,
                global_batch_size=train.batch_sizes.sizes[-1],
                micro_batch_size=train.micro_batch_size,
                data_parallel_size=replicas,
            )
        if self.kind == "transformer_engine":
            config = self.chunks[0].config
            self.warm_up = config.cuda_graph_warmup_steps
            length, rows = context.micro_batch_shape(train)
            self.helper = TECudaGraphHelper(
                model=self.chunks, config=config, seq_length=length, micro_batch_size=rows, optimizers=[optimizer]
            )

    def before_step(self, captures: Callable[[], None]) -> None:
        """Captures once the steps of this process were as many as the warm-up; all ranks call it.

        `captures` is called first: many layers and micro batches take minutes, which no rank must hold for a hang.
        What gathers weights by layer must not be captured: it is taken out and put before the graphs.  Gradients are
        zero afterwards.
        """
        if self.helper is None or self.helper.capture_finished():
            return
        if self.warm_up > 0:
            self.warm_up -= 1
            return
        captures()
        gathering = [chunk for chunk in self.chunks if chunk.ddp_config.overlap_param_gather]
        for chunk in gathering:
            chunk.disable_forward_pre_hook(param_sync=False)
        self.helper.create_cudagraphs()
        for chunk in gathering:
            chunk.enable_forward_pre_hook()
        if gathering:
            self.helper.cuda_graph_set_manual_hooks()

    def close(self) -> None:
        """Deletes what was captured, by either kind, so that another run of this process begins without."""
        if self.helper is not None and self.helper.graphs_created():
            self.helper.delete_cuda_graphs()
        if self.kind == "local":
            delete_cuda_graphs()
        if self.kind != "none":
            unset_num_microbatches_calculator()
