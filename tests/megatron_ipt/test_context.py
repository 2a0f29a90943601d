"""Slices of sequences and packed documents, against megatron-core's own functions; what `ipt plan` makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_device import run_python

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture, check_layout
from megatron_ipt.recipe import TrainSettings


@pytest.fixture(scope="module")
def megatron() -> dict[str, Any]:
    """What one process asks megatron-core, with fake groups.

    `transformer_engine` is a stand-in whose attention has the names of 2.x and only records what it is called with.
    """
    code = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import transformer_engine_stand_in
import transformer_engine.pytorch as te
import torch
class Kernel(torch.nn.Module):
    def __init__(self, **_): super().__init__()
    def forward(self, query, key, value, attention_mask=None, qkv_format=None, cu_seqlens_q=None, cu_seqlens_kv=None,
                cu_seqlens_q_padded=None, cu_seqlens_kv_padded=None, max_seqlen_q=None, max_seqlen_kv=None,
                attn_mask_type=None, window_size=None, pad_between_seqs=None):
        return dict(mask=attention_mask, format=qkv_format, ends=cu_seqlens_q.tolist(), keys=cu_seqlens_kv.tolist(),
                    longest=[max_seqlen_q, max_seqlen_kv], type=attn_mask_type, dtype=str(cu_seqlens_q.dtype))
te.DotProductAttention = Kernel
from megatron_ipt.mcore import context, dry, layers, parallel, config
from megatron_ipt.architecture import Architecture
from megatron_ipt.recipe import TrainSettings
from megatron.core import parallel_state as mpu
from megatron.core.extensions.transformer_engine import TEDotProductAttention
from megatron.core.models.common.embeddings.rope_utils import get_pos_emb_on_this_cp_rank
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.utils import _merge_cu_seqlens_across_micro_batch, get_batch_on_this_cp_rank
model = Architecture(4, 64, 176, 8, 4, 8, 1e-5, 1e4, 512)
told = {{"slices": [], "attention": {{}}}}
tokens = torch.arange(48).view(3, 16)
whole = {{"tokens": tokens, "labels": tokens + 1, "loss_mask": tokens * 0.5, "position_ids": tokens % 16}}
segments = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]])
for size in (1, 2, 4):
    train = TrainSettings(global_batch_size=2, seq_length=16, train_iters=1, lr=1e-3, context_parallel_size=size,
                          transformer_impl="transformer_engine", reset_attention_mask=True)
    for rank in range(size):
        with dry.fake_group(rank, size), parallel.model_parallel(train, with_gloo=False):
            group = mpu.get_context_parallel_group()
            ours = context.inputs(whole, train).columns
            theirs = get_batch_on_this_cp_rank({{**whole, "cu_seqlens": None}}, False, cp_group=group)
            told["slices"] += [bool(torch.equal(ours[name], theirs[name])) for name in whole]
            places = context.places(16, size, rank, torch.device("cpu"))
            told["slices"].append(places.tolist() == get_pos_emb_on_this_cp_rank(torch.arange(16), 0, group).tolist())
            cfg = config.transformer_config(model, train)
            for masks in (False, True):
                spec = layers.block_spec(cfg, None, document_masks=masks).layer_specs[0].submodules.self_attention
                told["attention"][f"{{size}} {{masks}}"] = spec.submodules.core_attention.__name__
            if size == 1:
                attention = TEDotProductAttention(cfg, 1, AttnMaskType.causal, "self")
                here = context.inputs({{"tokens": segments, "segments": segments}}, train)
                told["shape"] = list(here.columns["tokens"].shape)
                told["kernel"] = attention(None, None, None, here.attention_mask, AttnMaskType.causal,
                                           packed_seq_params=here.packed_seq_params)
import megatron.core.extensions.transformer_engine as extension
extension._get_cpu_offload_context = lambda *_, **__: (None, None)
from megatron_ipt.plan.layout import plan_layout
from megatron_ipt.recipe import ModelSettings
for size, masks in ((1, False), (2, False), (2, True)):
    train = TrainSettings(global_batch_size=8, seq_length=16, train_iters=1, lr=1e-3, context_parallel_size=size,
                          reset_attention_mask=masks)
    found = plan_layout(model, ModelSettings(), train, 4)
    stage = found.stages[0]
    figures = [found.data_parallel_size, found.micro_batches, found.parameters, stage.parameters]
    told[f"plan {{size}} {{masks}}"] = [*figures, stage.static_bytes, stage.activation_bytes]
from data_prep.errors import UserError
try:
    config.transformer_config(model, train.model_copy(update={{"transformer_config": {{"context_parallel_size": 2}}}}))
except UserError as error:
    told["refused"] = str(error)
from megatron_ipt.training.start import changes
now = TrainSettings(global_batch_size=8, seq_length=64, train_iters=1, lr=1e-3).model_dump(mode="json")
before = {{key: value for key, value in now.items() if key not in ("reset_attention_mask", "context_parallel_size")}}
on = {{**now, "reset_attention_mask": True, "context_parallel_size": 2}}
told["changes"] = [changes({{"train": before}}, {{"train": later}}) for later in (now, on)]
ends = torch.tensor([[0, 3, 5, 6], [0, 1, 6, 6]], dtype=torch.int32)
told["merged"] = _merge_cu_seqlens_across_micro_batch(ends, 6).tolist()
print(json.dumps(told))"""
    told = run_python(code)
    assert isinstance(told, dict)
    return told


def test_slices_and_positions_are_those_of_megatron(megatron: dict[str, Any]) -> None:
    """Every rank of 1, 2 and 4, against get_batch_on_this_cp_rank and get_pos_emb_on_this_cp_rank."""
    assert megatron["slices"] == [True] * 5 * (1 + 2 + 4)


def test_where_documents_end_is_what_megatron_packs(megatron: dict[str, Any]) -> None:
    """PackedSeqParams against megatron-core's own merge of a micro batch, and what its wrapper hands to the kernel."""
    kernel = megatron["kernel"]
    assert kernel["ends"] == kernel["keys"] == megatron["merged"] == [0, 3, 5, 6, 7, 12]
    assert (kernel["format"], kernel["type"], kernel["mask"]) == ("thd", "padding_causal", None)
    assert (kernel["longest"], kernel["dtype"], megatron["shape"]) == ([5, 5], "torch.int32", [1, 12])


def test_our_attention_stands_in_transformer_engines_layers_where_documents_are_split(megatron: dict[str, Any]) -> None:
    theirs = dict.fromkeys(["1 False", "1 True", "2 False", "4 False"], "TEDotProductAttention")
    assert megatron["attention"] == {**theirs, **dict.fromkeys(["2 True", "4 True"], "DotProductAttention")}


def test_a_plan_counts_the_ranks_that_share_a_sequence(megatron: dict[str, Any]) -> None:
    """Four ranks: bf16 weight 2, gradient 4 and 12 bytes of Adam's state over all four, with CP 2 as without."""
    one, two, masked = (megatron[f"plan {name}"] for name in ("1 False", "2 False", "2 True"))
    assert (one[:2], two[:2]) == ([4, 2], [2, 4])
    assert one[2:4] == two[2:4] and one[4] == two[4] == 9 * one[3]
    assert one[5] == 2 * two[5]
    # keys and values of 8 heads of 8 for 16 tokens in 2 bytes, 4 layers
    assert (masked[:5], masked[5] - two[5]) == (two[:5], 2 * 8 * 8 * 16 * 2 * 4)


def test_the_size_has_a_key_of_its_own(megatron: dict[str, Any]) -> None:
    assert "is set by the trainer; use the key train.context_parallel_size" in megatron["refused"]


def test_a_sequence_that_cannot_be_split_is_one_line() -> None:
    train = TrainSettings(global_batch_size=8, seq_length=64, train_iters=1, lr=1e-3, context_parallel_size=3)
    with pytest.raises(UserError, match="seq_length: 64 is no multiple of 2 x context_parallel_size = 6; use 66"):
        check_layout(Architecture(4, 64, 176, 8, 4, 8, 1e-5, 1e4, 512), train, 3)


def test_a_setting_of_later_is_off_in_a_recipe_of_before(megatron: dict[str, Any]) -> None:
    """A checkpoint of before goes on without a word, and is told where the setting is on now."""
    assert megatron["changes"] == [[], ["train.reset_attention_mask False -> True"]]
