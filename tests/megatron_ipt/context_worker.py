"""One process with fake groups that tells, as JSON, what our slices, layers and plans are beside megatron-core's.

`transformer_engine` is a stand-in whose attention has the names of 2.x and only records what it is called with.
"""
# ruff: noqa: E402

from __future__ import annotations

import json
from typing import Any

import torch
import transformer_engine_stand_in  # noqa: F401  (before what imports transformer_engine)

# isort: split
import transformer_engine.pytorch as te


class Kernel(torch.nn.Module):
    """The signature of transformer_engine 2.x's attention."""

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any = None,
        qkv_format: Any = None,
        cu_seqlens_q: Any = None,
        cu_seqlens_kv: Any = None,
        cu_seqlens_q_padded: Any = None,
        cu_seqlens_kv_padded: Any = None,
        max_seqlen_q: Any = None,
        max_seqlen_kv: Any = None,
        attn_mask_type: Any = None,
        window_size: Any = None,
        pad_between_seqs: Any = None,
    ) -> dict[str, Any]:
        found = {"mask": attention_mask, "format": qkv_format, "type": attn_mask_type, "dtype": str(cu_seqlens_q.dtype)}
        bounds = {"ends": cu_seqlens_q.tolist(), "keys": cu_seqlens_kv.tolist()}
        return {**found, **bounds, "longest": [max_seqlen_q, max_seqlen_kv]}


te.DotProductAttention = Kernel

import megatron.core.extensions.transformer_engine as extension
from megatron.core import parallel_state as mpu
from megatron.core.models.common.embeddings.rope_utils import get_pos_emb_on_this_cp_rank
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.utils import _merge_cu_seqlens_across_micro_batch, get_batch_on_this_cp_rank

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.mcore import config, context, dry, layers, parallel
from megatron_ipt.plan.layout import plan_layout
from megatron_ipt.settings import ModelSettings, TrainSettings
from megatron_ipt.training.start import changes

MODEL = Architecture(4, 64, 176, 8, 4, 8, 1e-5, 1e4, 512)


def settings(global_batch_size: int = 2, **more: Any) -> TrainSettings:
    return TrainSettings(global_batch_size=global_batch_size, seq_length=16, train_iters=1, lr=1e-3, **more)


def sliced() -> dict[str, Any]:
    """Every rank of 1, 2 and 4: slices and positions beside megatron's, the attention taken, and what TE is handed."""
    told: dict[str, Any] = {"slices": [], "attention": {}}
    for size in (1, 2, 4):
        train = settings(context_parallel_size=size, transformer_impl="transformer_engine", reset_attention_mask=True)
        for rank in range(size):
            with dry.fake_group(rank, size), parallel.model_parallel(train, with_gloo=False):
                told["slices"] += same_slices(train, size, rank)
                found = config.transformer_config(MODEL, train)
                for masks in (False, True):
                    told["attention"][f"{size} {masks}"] = attention_of(found, masks)
                if size == 1:
                    told |= handed_to_the_kernel(found, train)
    return told


def same_slices(train: TrainSettings, size: int, rank: int) -> list[bool]:
    tokens = torch.arange(48).view(3, 16)
    whole = {"tokens": tokens, "labels": tokens + 1, "loss_mask": tokens * 0.5, "position_ids": tokens % 16}
    group = mpu.get_context_parallel_group()
    ours = context.inputs(whole, train).columns
    theirs = get_batch_on_this_cp_rank({**whole, "cu_seqlens": None}, False, cp_group=group)
    places = context.places(16, size, rank, torch.device("cpu"))
    positions = get_pos_emb_on_this_cp_rank(torch.arange(16), 0, group)
    return [*(bool(torch.equal(ours[name], theirs[name])) for name in whole), places.tolist() == positions.tolist()]


def attention_of(found: Any, masks: bool) -> str:
    spec = layers.block_spec(found, None, document_masks=masks).layer_specs[0].submodules.self_attention
    return str(spec.submodules.core_attention.__name__)


def handed_to_the_kernel(found: Any, train: TrainSettings) -> dict[str, Any]:
    segments = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]])
    attention = extension.TEDotProductAttention(found, 1, AttnMaskType.causal, "self")
    here = context.inputs({"tokens": segments, "segments": segments}, train)
    kernel = attention(
        None, None, None, here.attention_mask, AttnMaskType.causal, packed_seq_params=here.packed_seq_params
    )
    return {"shape": list(here.columns["tokens"].shape), "kernel": kernel}


def planned() -> dict[str, Any]:
    """[data-parallel size, micro batches, parameters, those of a stage, its static and activation bytes] on 4 ranks."""
    told = {}
    for size, masks in ((1, False), (2, False), (2, True)):
        found = plan_layout(
            MODEL, ModelSettings(), settings(8, context_parallel_size=size, reset_attention_mask=masks), 4
        )
        stage = found.stages[0]
        figures = [found.data_parallel_size, found.batches[0].micro_batches, found.parameters, stage.parameters]
        told[f"plan {size} {masks}"] = [*figures, stage.static_bytes, stage.activation_bytes]
    return told


def refused() -> str:
    try:
        config.transformer_config(MODEL, settings(transformer_config={"context_parallel_size": 2}))
    except UserError as error:
        return str(error)
    return ""


def changed() -> list[Any]:
    """What a resume says of settings that a checkpoint from before them does not have."""
    now = TrainSettings(global_batch_size=8, seq_length=64, train_iters=1, lr=1e-3).model_dump(mode="json")
    before = {key: value for key, value in now.items() if key not in ("reset_attention_mask", "context_parallel_size")}
    on = {**now, "reset_attention_mask": True, "context_parallel_size": 2}
    return [changes({"train": before}, {"train": later}) for later in (now, on)]


def main() -> None:
    told = sliced()
    extension._get_cpu_offload_context = lambda *_, **__: (None, None)
    ends = torch.tensor([[0, 3, 5, 6], [0, 1, 6, 6]], dtype=torch.int32)
    merged = _merge_cu_seqlens_across_micro_batch(ends, 6).tolist()
    print(json.dumps({**told, **planned(), "refused": refused(), "changes": changed(), "merged": merged}))


main()
