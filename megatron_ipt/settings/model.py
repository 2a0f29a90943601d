"""Settings of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from data_prep.settings import Settings


class ModelSettings(Settings):
    """The model: read from a Hugging Face directory; any of its numbers may be set here instead."""

    load_hf: Path | None = Field(None, description="Hugging Face directory to read configuration and weights from")
    family: Literal["llama", "mistral", "qwen2", "qwen3"] | None = Field(
        None,
        description="from scratch: whose layers (qwen2: biases on q, k, v; qwen3: norms of q, k); default llama",
    )
    num_layers: int | None = Field(None, ge=1, description="transformer layers")
    hidden_size: int | None = Field(None, ge=1, description="width of the residual stream")
    ffn_hidden_size: int | None = Field(None, ge=1, description="width inside the feed-forward layer")
    num_attention_heads: int | None = Field(None, ge=1, description="query heads")
    num_query_groups: int | None = Field(None, ge=1, description="key/value heads (grouped-query attention)")
    kv_channels: int | None = Field(
        None, ge=1, description="width of a head; default hidden_size / num_attention_heads"
    )
    layernorm_epsilon: float | None = Field(None, gt=0, description="epsilon of the RMS norms")
    rotary_base: float | None = Field(None, gt=0, description="theta of the rotary position embedding")
    window_size: tuple[int, int] | None = Field(
        None,
        description="mistral: places before its own, and after it (0), that a token looks at; "
        "[W - 1, 0] for Hugging Face's sliding_window W [tokens]",
    )
    vocab_size: int | None = Field(None, ge=2, description="tokens of the vocabulary, before padding")
    share_embeddings_and_output_weights: bool | None = Field(None, description="tie input and output embeddings")
    init_method_std: float | None = Field(None, gt=0, description="standard deviation of freshly made weights")
    make_vocab_size_divisible_by: int = Field(
        128, ge=1, description="the vocabulary is padded to a multiple of this times tensor_model_parallel_size"
    )

    @model_validator(mode="after")
    def _window_is_causal(self) -> Self:
        if self.window_size is not None and (self.window_size[0] < 0 or self.window_size[1] != 0):
            raise ValueError(f"window_size={list(self.window_size)}: use [W - 1, 0], W at least 1: attention is causal")
        return self
