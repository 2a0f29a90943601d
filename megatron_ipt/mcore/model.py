"""The model of this rank: GPTModel chunks, their data-parallel wrapping, and forward/backward over them.

The one file that names GPTModel.  megatron-core 0.19 deprecates it in favour of HybridModel, which has no rope
scaling, ships Transformer Engine specs only and rejects virtual pipelining: docs/decisions/0001 says when to move.
"""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from megatron.core import parallel_state as mpu
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module, MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_ipt.architecture import Architecture
from megatron_ipt.mcore import config as configs
from megatron_ipt.mcore import context, device, parallel
from megatron_ipt.mcore.checksum import checksums
from megatron_ipt.mcore.layers import block_spec
from megatron_ipt.settings import TrainSettings

Batch = Mapping[str, torch.Tensor]
"""Whole sequences, whatever the layout, [micro batch, sequence]: tokens, labels, position_ids and segments int64,
loss_mask float32; source_index int64 [micro batch].  `segments` and `source_index` may be missing."""


_COLUMNS = len(("loss", "tokens", "samples", "checksum"))


@dataclass(frozen=True, slots=True)
class Part:
    """A source's part of a global batch: the sum of its losses [nats] over `tokens` that count, and what was drawn.

    `samples` are its sequences, `checksum` is the sum of the checksums of their tokens (checksum.py).
    """

    loss: float
    tokens: int
    samples: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Losses:
    """The mean loss of a global batch in nats over its `tokens` that count, and the part of each source."""

    mean: float
    tokens: int
    by_source: tuple[Part, ...]


def build(
    architecture: Architecture,
    config: TransformerConfig,
    train: TrainSettings,
    vocab_size: int,
    place: str | None = None,
) -> list[GPTModel]:
    """This rank's chunks (one, or one a virtual stage) with fresh weights; `vocab_size` is the padded one.

    `place` is the device they live on, the process's own by default; "meta" gives shapes without storage.
    """
    chunks = []
    place = place or device.pick("device")
    for index in range(train.virtual_pipeline_model_parallel_size or 1):
        vp_stage = index if train.virtual_pipeline_model_parallel_size else None
        with torch.device(place) if place == "meta" else nullcontext():
            chunk = GPTModel(
                config=config,
                transformer_layer_spec=block_spec(
                    config, vp_stage, document_masks=train.reset_attention_mask, fp8_emulation=train.fp8_emulation
                ),
                vocab_size=vocab_size,
                max_sequence_length=train.seq_length,
                pre_process=mpu.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
                post_process=mpu.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
                parallel_output=True,
                share_embeddings_and_output_weights=architecture.share_embeddings_and_output_weights,
                position_embedding_type="rope",
                rotary_base=architecture.rotary_base,
                vp_stage=vp_stage,
            )
        _scale_rope(chunk, architecture)
        chunks.append(chunk.to(place))
    return chunks


def _scale_rope(chunk: GPTModel, architecture: Architecture) -> None:
    """Llama 3.1's frequencies.  GPTModel's own `rope_scaling` takes the factor only; the rest is fixed at 3.1's."""
    scaling, rotary = architecture.rope_scaling, chunk.rotary_pos_emb
    if scaling is not None:
        rotary.inv_freq = rotary._apply_scaling(rotary.inv_freq, **asdict(scaling))


def wrap(
    chunks: Sequence[GPTModel],
    config: TransformerConfig,
    train: TrainSettings,
    reduces: Callable[[], None] = lambda: None,
) -> list[DistributedDataParallel]:
    """The chunks in bf16 if asked, under Megatron's data parallelism; `reduces` is called as gradients are.

    Weights must be in before: the optimizer's fp32 masters are made from what stands here.
    """
    inner = [Float16Module(config, chunk) if train.bf16 else chunk for chunk in chunks]
    ddp = configs.ddp_config(train)
    wrapped = [
        DistributedDataParallel(config, ddp, chunk, disable_bucketing=index > 0) for index, chunk in enumerate(inner)
    ]

    def finalize(*arguments: Any, **options: Any) -> None:
        reduces()
        finalize_model_grads(*arguments, **options)

    config.finalize_model_grads_func = finalize
    if train.overlap_grad_reduce:
        no_sync = [chunk.no_sync for chunk in wrapped]
        config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
    return wrapped


def unwrap(chunk: torch.nn.Module) -> GPTModel:
    while not isinstance(chunk, GPTModel):
        inner = chunk.module
        assert isinstance(inner, torch.nn.Module)
        chunk = inner
    return chunk


@torch.no_grad()
def finish_param_gather(chunks: Sequence[torch.nn.Module], optimizer: MegatronOptimizer | None) -> None:
    """Bring the last step's update to every rank's weights, before they are read outside a forward; all ranks call it.

    With overlap_param_gather a step updates this rank's part alone, and the next forward gathers the others'.  That
    forward then finds the gather done: what it computes stays the same.
    """
    wrapped = [chunk for chunk in chunks if isinstance(chunk, DistributedDataParallel)]
    overlapping = [chunk for chunk in wrapped if chunk.ddp_config.overlap_param_gather]
    if overlapping and optimizer is not None:
        optimizer.prepare_model_params_for_param_sync()  # weights kept in MXFP8 come from their masters
    for chunk in overlapping:
        chunk.start_param_sync(force_sync=True)


def expect_update(chunks: Sequence[DistributedDataParallel]) -> None:
    """After a forward pass between a step's backward pass and its update: that pass gathered what was there before.

    megatron-core clears the mark of a gather as gradients are reduced, and sets it in the next forward pass, which it
    takes to be that of the next step; the update would reach no other rank.
    """
    for chunk in chunks:
        if chunk.ddp_config.overlap_param_gather:
            chunk.reset_param_sync_dispatch_state()


@contextmanager
def without_grad_buffers(chunks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Give the gradients' memory (4 bytes a parameter) to something else for a while; they are zero afterwards."""
    wrapped = [chunk for chunk in chunks if isinstance(chunk, DistributedDataParallel)]
    for chunk in wrapped:
        chunk.offload_grad_buffers()
    try:
        with device.lean():
            yield
    finally:
        for chunk in wrapped:
            chunk.restore_grad_buffers()


def named_parameters(chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """(name, parameter) with layer numbers counted over the whole model, from 0, on every rank."""
    for chunk in chunks:
        model = unwrap(chunk)
        numbers = {
            f"decoder.layers.{index}.": layer.layer_number - 1 for index, layer in enumerate(model.decoder.layers)
        }
        for name, parameter in model.named_parameters():
            prefix = ".".join(name.split(".", 3)[:3]) + "."
            if prefix in numbers:
                name = f"decoder.layers.{numbers[prefix]}.{name[len(prefix) :]}"
            yield name, parameter


def sum_of_losses(
    loss_mask: torch.Tensor, source_index: torch.Tensor, drawn: torch.Tensor, sources: int, losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """The sum of unmasked token losses and their count; megatron-core divides by the global count (nats).

    The report is float64 [1 + sources, 4]: both of the whole, then of each source, there with `drawn` (`_drawn`).
    """
    counted = losses.float().view_as(loss_mask) * loss_mask
    total = counted.sum()
    count = loss_mask.sum().to(torch.int)
    report = torch.zeros(1 + sources, _COLUMNS, dtype=torch.float64, device=losses.device)
    report[0, :2] = torch.stack([total.detach(), count.float()]).double()
    rows = torch.stack([counted.detach().sum(1), loss_mask.sum(1)], dim=1)
    report.index_add_(0, source_index + 1, torch.cat([rows.double(), drawn], dim=1))
    return total, count, {"loss": report}


def forward_step(
    train: TrainSettings, sources: int, batches: Iterator[Batch], model: MegatronModule
) -> tuple[torch.Tensor, Callable[..., Any]]:
    batch = next(batches)
    here = context.inputs(batch, train)
    source_index = batch.get("source_index", torch.zeros_like(batch["tokens"][:, 0]))
    output = _forward(model, here, here.columns["labels"])
    mask = here.columns["loss_mask"].view(len(source_index), -1)
    return output, functools.partial(sum_of_losses, mask, source_index, _drawn(batch["tokens"]), sources)


def _drawn(tokens: torch.Tensor) -> torch.Tensor:
    """(1, its checksum) of each sequence, float64 [batch, 2]; zeros on all context-parallel ranks but the first."""
    told = torch.stack([torch.ones_like(tokens[:, 0]), checksums(tokens)], dim=1).double()
    return told if mpu.get_context_parallel_rank() == 0 else torch.zeros_like(told)


def _forward(model: MegatronModule, here: context.Inputs, labels: torch.Tensor | None) -> torch.Tensor:
    output: torch.Tensor = model(
        here.columns["tokens"],
        here.columns["position_ids"],
        here.attention_mask,
        labels=labels,
        packed_seq_params=here.packed_seq_params,
    )
    return output


def run_batch(
    chunks: Sequence[MegatronModule],
    batches: Callable[[], Iterator[Batch]],
    train: TrainSettings,
    *,
    backward: bool,
    sources: int = 1,
    global_batch_size: int | None = None,
) -> Losses:
    """One global batch, forward and perhaps backward: its losses, the same on every rank.

    `batches` makes a new iterator over this rank's micro batches.  Gradients stay in the chunks' buffers.
    `global_batch_size`: samples of the batch over all ranks, while a ramp goes on; default `train`'s.
    """
    replicas = mpu.get_data_parallel_world_size()
    step = functools.partial(forward_step, train, sources)
    samples = (global_batch_size or train.global_batch_size) // replicas
    reports = _schedule(chunks, batches, train, step, samples, not backward)
    total = torch.zeros(1 + sources, _COLUMNS, dtype=torch.float64, device=device.pick("device"))
    for report in reports:
        total += report["loss"]
    (loss, count, *_), *rows = parallel.sum_over_ranks(total).tolist()
    by_source = tuple(Part(summed, int(tokens), int(samples), int(check)) for summed, tokens, samples, check in rows)
    return Losses(loss / max(count, 1.0), int(count), by_source)


def logits(chunks: Sequence[MegatronModule], batch: Batch, train: TrainSettings) -> torch.Tensor | None:
    """Logits of one micro batch, [batch, sequence, padded vocabulary], on the ranks of the last stage; else None."""

    def step(batches: Iterator[Batch], model: MegatronModule) -> tuple[torch.Tensor, Callable[..., Any]]:
        output = _forward(model, context.inputs(next(batches), single), None)
        return output, lambda tensor, non_loss_data: tensor

    count, length = batch["tokens"].shape
    masked = train.reset_attention_mask and "segments" in batch
    update = {"micro_batch_size": count, "seq_length": length, "reset_attention_mask": masked}
    single = train.model_copy(update=update)
    # the interleaved schedule wants as many micro batches as there are stages
    copies = train.pipeline_model_parallel_size if len(chunks) > 1 else 1
    repeated = functools.partial(itertools.repeat, batch, copies)
    with torch.no_grad():
        collected = _schedule(chunks, repeated, single, step, count * copies, True, collect_non_loss_data=True)
    return context.whole(parallel.gather_tensor_parallel(collected[0]), count) if collected else None


def _schedule(
    chunks: Sequence[MegatronModule],
    batches: Callable[[], Iterator[Batch]],
    train: TrainSettings,
    step: Callable[..., Any],
    samples: int,
    forward_only: bool,
    **options: Any,
) -> list[Any]:
    """megatron-core's pipeline schedule over `samples` samples of this data-parallel rank."""
    several = len(chunks) > 1
    length, rows = context.micro_batch_shape(train)
    result: list[Any] = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=[batches() for _ in chunks] if several else batches(),
        model=list(chunks) if several else chunks[0],
        num_microbatches=samples // train.micro_batch_size,
        seq_length=length,
        micro_batch_size=rows,
        decoder_seq_length=length,
        forward_only=forward_only,
        **options,
    )
    return result
