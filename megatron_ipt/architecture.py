"""The numbers of a decoder-only model under Megatron's names, and which layouts divide it.  Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from data_prep.errors import UserError
from megatron_ipt.settings import ModelSettings, TrainSettings

FAMILIES: Final[dict[str, dict[str, bool]]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"add_qkv_bias": True},
    "qwen3": {"qk_layernorm": True},
}
"""What each family has in every layer beyond Llama's (Megatron's names)."""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3.1's rotary frequencies: those of long waves divided by `factor`, those of short ones kept.

    A wave is long above `original_max_position_embeddings` / `low_freq_factor` [tokens], and short below the same over
    `high_freq_factor`; between the two the frequency is interpolated.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """A Llama-style decoder: RMS norm, rotary positions, SwiGLU, grouped-query attention.

    `window_size` is Megatron's: (places before its own, places after it) that a token may look at, None for all before.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    layernorm_epsilon: float
    rotary_base: float
    vocab_size: int
    share_embeddings_and_output_weights: bool = False
    init_method_std: float = 0.02
    family: str = "llama"
    add_qkv_bias: bool = False
    qk_layernorm: bool = False
    window_size: tuple[int, int] | None = None
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        """Read back what JSON made of the last two."""
        if isinstance(self.window_size, list):
            object.__setattr__(self, "window_size", tuple(self.window_size))
        if isinstance(self.rope_scaling, dict):
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))

    def parameters(self, vocab_size: int | None = None) -> int:
        """Number of weights, with the vocabulary as it is or padded to `vocab_size`."""
        heads = self.num_attention_heads + 2 * self.num_query_groups
        attention = self.hidden_size * self.kv_channels * (heads + self.num_attention_heads)
        layer = attention + 3 * self.hidden_size * self.ffn_hidden_size + 2 * self.hidden_size
        layer += self.add_qkv_bias * heads * self.kv_channels + self.qk_layernorm * 2 * self.kv_channels
        tables = 1 if self.share_embeddings_and_output_weights else 2
        return self.num_layers * layer + self.hidden_size + tables * (vocab_size or self.vocab_size) * self.hidden_size

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def with_settings(base: Architecture | None, model: ModelSettings) -> Architecture:
    """`base` (from a Hugging Face directory, or nothing) with the numbers that the recipe sets itself."""
    names = {field.name for field in fields(Architecture)} & set(ModelSettings.model_fields)
    given = {name: getattr(model, name) for name in names if getattr(model, name) is not None}
    family = given.get("family", base.family if base else "llama")
    if given.get("window_size") and family != "mistral":
        problem = f"a model of family {family} has no window over every layer"
        raise UserError("model.window_size", problem, "set model.family: mistral, or leave it out")
    if base is not None:
        if family != base.family:
            problem = f"{family}, but the config.json of model.load_hf is of family {base.family}"
            raise UserError("model.family", problem, "leave it out")
        return replace(base, **given)
    defaults = {"layernorm_epsilon": 1e-5, "rotary_base": 10000.0, **FAMILIES[family], **given}
    if "num_attention_heads" in given:
        defaults.setdefault("num_query_groups", given["num_attention_heads"])
        if "hidden_size" in given:
            defaults.setdefault("kv_channels", given["hidden_size"] // given["num_attention_heads"])
    missing = [field.name for field in fields(Architecture)[:9] if field.name not in defaults]
    if missing:
        raise UserError(
            "model", f"neither load_hf nor {', '.join(missing)} is set", "set model.load_hf or every number"
        )
    return Architecture(**defaults)


def padded_vocab_size(architecture: Architecture, model: ModelSettings, train: TrainSettings) -> int:
    """Megatron's padding: the next multiple of make_vocab_size_divisible_by x tensor_model_parallel_size."""
    multiple = model.make_vocab_size_divisible_by * train.tensor_model_parallel_size
    return -(-architecture.vocab_size // multiple) * multiple


def check_layout(architecture: Architecture, train: TrainSettings, world_size: int) -> None:
    """UserError, with what would work, for a layout that does not divide the model, the batch or the world."""
    tensor, pipeline = train.tensor_model_parallel_size, train.pipeline_model_parallel_size
    context = train.context_parallel_size
    for name in ("num_attention_heads", "num_query_groups", "ffn_hidden_size"):
        _divides("tensor_model_parallel_size", tensor, name, getattr(architecture, name))
    if train.seq_length % (2 * context) and context > 1:
        problem = f"{train.seq_length} is no multiple of 2 x context_parallel_size = {2 * context}"
        above = -(-train.seq_length // (2 * context)) * 2 * context
        raise UserError("train.seq_length", problem, f"use {above}, or another context_parallel_size")
    if train.sequence_parallel:
        part = "seq_length" if context == 1 else "a context-parallel rank's part of seq_length"
        _divides("tensor_model_parallel_size", tensor, part, train.seq_length // context)
    _divides("pipeline_model_parallel_size", pipeline, "num_layers", architecture.num_layers)
    if train.virtual_pipeline_model_parallel_size:
        _divides(
            "virtual_pipeline_model_parallel_size",
            train.virtual_pipeline_model_parallel_size,
            "the layers of a stage",
            architecture.num_layers // pipeline,
            smallest=2,
        )
    names = "tensor_model_parallel_size x pipeline_model_parallel_size"
    if context > 1:
        names += " x context_parallel_size"
    _divides(names, train.model_parallel_size, "the world", world_size)
    replicas = world_size // train.model_parallel_size
    batch = train.micro_batch_size * replicas
    if train.global_batch_size % batch:
        below, above = train.global_batch_size // batch * batch, (train.global_batch_size // batch + 1) * batch
        raise UserError(
            "train.global_batch_size",
            f"{train.global_batch_size} is no multiple of micro_batch_size x data-parallel size = {batch}",
            f"use {below or above} or {above}" if below else f"use {above}",
        )
    if train.virtual_pipeline_model_parallel_size:
        count = train.global_batch_size // batch
        _divides("pipeline_model_parallel_size", pipeline, "the micro batches of a step on a rank", count)


def _divides(setting: str, parts: int, name: str, whole: int, smallest: int = 1) -> None:
    if whole % parts:
        legal = [size for size in range(smallest, min(whole, 64) + 1) if whole % size == 0]
        raise UserError(
            f"train.{setting}", f"{parts} does not divide {name} ({whole})", f"use one of {', '.join(map(str, legal))}"
        )
