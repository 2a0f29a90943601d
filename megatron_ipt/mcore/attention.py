"""Attention through torch's scaled_dot_product_attention, where Transformer Engine's cannot be or does not fit.

That is on a CPU, and on a GPU too for document masks under context parallelism (context.py says why), and for windows.
There each rank has the queries of its own places and gathers the keys and values of all: exact, whatever the mask.
"""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state as mpu
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_ipt.mcore.context import causally_blocked


class DotProductAttention(torch.nn.Module):
    """Causal attention, perhaps within a window of the last `window_size[0]` places and a token's own.

    Shapes are Megatron's: [sequence, batch, heads, width], or packed, [tokens, heads, width].
    """

    def __init__(self, config: TransformerConfig, *_: Any, softmax_scale: float | None = None, **__: Any) -> None:
        super().__init__()
        self.scale = softmax_scale
        self.context_parallel_size = config.context_parallel_size
        self.behind = None if config.window_size is None else config.window_size[0]

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        packed_seq_params: PackedSeqParams | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """`attention_mask` is that of `context.Inputs`; without one, and unpacked, a sequence is one document."""
        if packed_seq_params is not None:
            return self._packed(query, key, value, packed_seq_params)
        blocked = attention_mask
        if self.context_parallel_size > 1:
            key, value = _gathered(key, value)
        windowed = self._windowed(len(key))
        if windowed or (blocked is None and self.context_parallel_size > 1):
            rank = mpu.get_context_parallel_rank()
            behind = self.behind if windowed else None
            unseen = causally_blocked(len(key), self.context_parallel_size, rank, key.device, behind)
            blocked = unseen if blocked is None else blocked | unseen
        length, batch, heads, width = query.shape
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = self._attend(query, key, value, blocked)
        return out.permute(2, 0, 1, 3).reshape(length, batch, heads * width)

    def _packed(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed_seq_params: PackedSeqParams
    ) -> torch.Tensor:
        """Document by document, so that the cost is the sum of their squares."""
        assert packed_seq_params.qkv_format == "thd", packed_seq_params.qkv_format
        lengths = packed_seq_params.cu_seqlens_q.diff().tolist()
        parts = zip(*(x.transpose(0, 1)[None].split(lengths, dim=2) for x in (query, key, value)), strict=True)
        unseen = None
        if self._windowed(max(lengths)):  # depends on distances alone: a part of it is a shorter document's
            unseen = causally_blocked(max(lengths), 1, 0, key.device, self.behind)
        out = [
            self._attend(q, k, v, None if unseen is None else unseen[:length, :length])
            for length, (q, k, v) in zip(lengths, parts, strict=True)
        ]
        return torch.cat(out, dim=2)[0].transpose(0, 1).flatten(1)

    def _windowed(self, length: int) -> bool:
        """Whether the window hides anything of `length` places."""
        return self.behind is not None and self.behind + 1 < length

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, blocked: torch.Tensor | None
    ) -> torch.Tensor:
        """[batch, heads, places, width]; causal where nothing is `blocked`."""
        group = query.shape[1] // key.shape[1]
        if blocked is None:
            return F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=self.scale, enable_gqa=group > 1
            )
        if group > 1:  # no fused kernel of torch takes both a mask and fewer key heads
            key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=~blocked, scale=self.scale)

    def sharded_state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}


def _gathered(key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of all context-parallel ranks, in their order; gradients are summed and sent back."""
    both = torch.cat([key, value], dim=-1)
    whole = gather_from_sequence_parallel_region(both, group=mpu.get_context_parallel_group())
    return whole.split([key.shape[-1], value.shape[-1]], dim=-1)
