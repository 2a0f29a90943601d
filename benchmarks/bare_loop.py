#!/usr/bin/env python3
"""What megatron-core alone takes for a step: forward, backward, clip, update on batches in memory, and nothing else.

    torchrun --nproc-per-node N benchmarks/bare_loop.py JOB OUT [BATON]

JOB is a JSON file (`training_cases.Job`): fields of megatron-core's three configurations and the file of token ids.
All batches lie on the device before the first step.  No loss is looked at, nothing is judged, logged or kept: this is
what our run is held against.  OUT gets the milliseconds from the start of each step to the start of the next, those of
the processor, the losses, and the largest memory.  With BATON (`steps.py`) it takes its steps in turn with our run.

Of our package it has the CPU shim alone, where there is no GPU.  It has not run on a GPU.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import steps
import torch
import torch.distributed as dist
import torch.nn.functional as F

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
if not HAS_GPU:
    import megatron_ipt.mcore.shim  # noqa: F401

from megatron.core import parallel_state as mpu  # noqa: E402
from megatron.core import tensor_parallel  # noqa: E402
from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec  # noqa: E402
from megatron.core.models.gpt.gpt_model import GPTModel  # noqa: E402
from megatron.core.optimizer import (  # noqa: E402
    OptimizerConfig,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.transformer.module import Float16Module  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

Batch = dict[str, torch.Tensor]


class Attention(torch.nn.Module):
    """Causal attention by torch's kernel, in the place of the local layers' own, which keeps all scores."""

    def __init__(self, *_: Any, softmax_scale: float | None = None, **__: Any) -> None:
        super().__init__()
        self.scale = softmax_scale

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """[sequence, batch, heads, width] each -> [sequence, batch, heads x width]."""
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        grouped = key.shape[1] != query.shape[1]
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scale, enable_gqa=grouped)
        return out.permute(2, 0, 1, 3).flatten(2)


def transformer_config(job: Mapping[str, Any]) -> TransformerConfig:
    """A Llama; which kernels are fused is as megatron-core can have it on this device."""
    of_engine = job["layers"] == "transformer_engine"
    values: dict[str, Any] = {
        "normalization": "RMSNorm",
        "layernorm_epsilon": 1e-5,
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "add_bias_linear": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "bf16": True,
        "params_dtype": torch.bfloat16,
        "pipeline_dtype": torch.bfloat16,
        "calculate_per_token_loss": True,
        "transformer_impl": job["layers"],
        "use_cpu_initialization": True,
        "masked_softmax_fusion": HAS_GPU,
        "gradient_accumulation_fusion": False,
        "bias_activation_fusion": HAS_GPU,
        "bias_dropout_fusion": HAS_GPU,
        "apply_rope_fusion": HAS_GPU and of_engine,
        "persist_layer_norm": False,
        "deallocate_pipeline_outputs": HAS_GPU,
    }
    return TransformerConfig(**{**values, **_typed(job["transformer_config"])})


def optimizer_config(job: Mapping[str, Any]) -> OptimizerConfig:
    values = {"optimizer": "adam", "bf16": True, "params_dtype": torch.bfloat16, "use_distributed_optimizer": True}
    return OptimizerConfig(**{**values, **_typed(job["optimizer_config"])})


def ddp_config(job: Mapping[str, Any]) -> DistributedDataParallelConfig:
    values = {"grad_reduce_in_fp32": True, "use_distributed_optimizer": True}
    return DistributedDataParallelConfig(**{**values, **_typed(job["ddp_config"])})


def _typed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no dtypes: their names, as torch has them."""
    return {name: getattr(torch, value) if name.endswith("_dtype") else value for name, value in fields.items()}


def build(job: Mapping[str, Any], config: TransformerConfig) -> GPTModel:
    """This rank's stage of the model, with fresh weights."""
    spec = get_gpt_decoder_block_spec(config, use_transformer_engine=job["layers"] == "transformer_engine")
    if job["layers"] == "local":
        for layer in spec.layer_specs:
            layer.submodules.self_attention.submodules.core_attention = Attention
    return GPTModel(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=job["vocab_size"],
        max_sequence_length=job["seq_length"],
        pre_process=mpu.is_pipeline_first_stage(),
        post_process=mpu.is_pipeline_last_stage(),
        parallel_output=True,
        share_embeddings_and_output_weights=job["tied"],
        position_embedding_type="rope",
        rotary_base=job["rotary_base"],
    )


def batches(job: Mapping[str, Any]) -> list[list[Batch]]:
    """The micro batches of each step, on the device; data-parallel rank d of n has samples d, d + n, ... of a step."""
    length, size = job["seq_length"], job["global_batch_size"]
    ids = np.fromfile(job["tokens"], np.uint16 if job["token_bytes"] == 2 else np.int32)
    rows = np.resize(ids, (job["steps"] * size, length + 1)).astype(np.int64)
    positions = torch.arange(length, device=DEVICE).expand(job["micro_batch_size"], -1)
    rank, replicas = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
    found = []
    for first in range(0, len(rows), size):
        mine = torch.from_numpy(rows[first + rank : first + size : replicas]).to(DEVICE)
        found.append(
            [
                {"tokens": part[:, :-1].contiguous(), "labels": part[:, 1:].contiguous(), "position_ids": positions}
                for part in mine.split(job["micro_batch_size"])
            ]
        )
    return found


def summed(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Every label counts; megatron-core divides by their global number."""
    loss = losses.float().sum()
    count = torch.full((), losses.numel(), dtype=torch.int, device=losses.device)
    return loss, count, {"loss": loss.detach() / losses.numel()}


def forward_step(data: Iterator[Batch], model: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
    batch = next(data)
    return model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"]), summed


def schedule(config: TransformerConfig) -> Callable[..., list[dict[str, torch.Tensor]]]:
    """megatron-core's; under full_iteration one CUDA graph of it (`local` graphs need nothing of a loop)."""
    run: Callable[..., Any] = get_forward_backward_func()
    if config.cuda_graph_impl == "transformer_engine":
        sys.exit("cuda_graph_impl: transformer_engine is not in the bare loop; use local or full_iteration")
    if config.cuda_graph_impl == "full_iteration":
        from megatron.core.full_cuda_graph import FullCudaGraphWrapper

        return FullCudaGraphWrapper(run, cuda_graph_warmup_steps=config.cuda_graph_warmup_steps)
    return run


def train(job: Mapping[str, Any], noted: steps.Steps) -> dict[str, Any]:
    """`steps` steps; what they took."""
    config = transformer_config(job)
    graphs = config.cuda_graph_impl != "none"
    torch.manual_seed(job["seed"])
    tensor_parallel.model_parallel_cuda_manual_seed(job["seed"], use_cudagraphable_rng=graphs)
    inner = Float16Module(config, build(job, config).to(DEVICE))
    model = DistributedDataParallel(config, ddp_config(job), inner)
    of_optimizer = optimizer_config(job)
    standard = get_standard_config_overrides(of_optimizer)  # norms do not decay
    optimizer = get_megatron_optimizer(of_optimizer, [model], config_overrides=standard)
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    run, data, losses, norms = schedule(config), batches(job), [], []
    for step in data:
        noted.begin()
        model.zero_grad_buffer()
        optimizer.zero_grad()
        told = run(
            forward_step_func=forward_step,
            data_iterator=iter(step),
            model=model,
            num_microbatches=len(step),
            seq_length=job["seq_length"],
            micro_batch_size=job["micro_batch_size"],
            decoder_seq_length=job["seq_length"],
            forward_only=False,
        )
        losses.append([each["loss"].clone() for each in told])
        _, norm, _ = optimizer.step()
        norms.append(float(norm))
    noted.end()
    return {
        "periods_ms": noted.periods_ms,
        "processor_ms": noted.processor_ms,
        "losses": [float(torch.stack(each).mean()) for each in losses if each],
        "norms": norms,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "memory_bytes": torch.cuda.max_memory_allocated() if HAS_GPU else resident_bytes(),
    }


def resident_bytes() -> int:
    """Largest memory of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(arguments: Sequence[str]) -> None:
    job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    if HAS_GPU:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if HAS_GPU else "gloo")
    layout = [job["transformer_config"].get(f"{name}_model_parallel_size", 1) for name in ("tensor", "pipeline")]
    mpu.initialize_model_parallel(*layout)
    told = train(job, steps.of_this_rank(*arguments[2:] or [""]))
    if dist.get_rank() == dist.get_world_size() - 1:  # it has the losses, whatever the layout
        Path(arguments[1]).write_text(json.dumps(told), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
