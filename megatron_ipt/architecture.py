"""The numbers of a decoder-only model under Megatron's names, and which layouts divide it.  Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from data_prep.errors import UserError
from megatron_ipt.settings import ModelSettings, TrainSettings
from megatron_ipt.settings.layout import chunks_of

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


def stage_layers(num_layers: int, train: TrainSettings) -> tuple[tuple[int, ...], ...]:
    """Layers of each chunk of each pipeline rank; UserError, with what would work, where they cannot be divided."""
    pipeline, virtual = train.pipeline_model_parallel_size, train.virtual_pipeline_model_parallel_size or 1
    if train.pipeline_model_parallel_layout:
        layers = [chunk.count("t") for chunk in chunks_of(train.pipeline_model_parallel_layout)]
        if sum(layers) != num_layers:
            problem = f"has {sum(layers)} layers (t), the model {num_layers}"
            mend = f"use {even_layout(num_layers, len(layers))} or another of {num_layers}"
            raise UserError("train.pipeline_model_parallel_layout", problem, mend)
        return tuple(tuple(layers[rank::pipeline]) for rank in range(pipeline))
    of_rank = _layers_of_ranks(num_layers, train)
    name, chunks = "virtual_pipeline_model_parallel_size", pipeline * virtual
    uneven = f", or {_uneven(num_layers, chunks)}" if chunks <= num_layers + 2 else ", or leave it out"
    for layers_here in of_rank:
        _divides(name, virtual, "the layers of a stage", layers_here, _divisors(layers_here)[1:], uneven)
    return tuple((layers_here // virtual,) * virtual for layers_here in of_rank)


def _layers_of_ranks(num_layers: int, train: TrainSettings) -> list[int]:
    """Layers of each pipeline rank where no layout is written out: alike, but for the first and the last."""
    first, last = train.num_layers_in_first_pipeline_stage, train.num_layers_in_last_pipeline_stage
    pipeline = train.pipeline_model_parallel_size
    if first is None and last is None:
        uneven = f", or {_uneven(num_layers, pipeline)}" if pipeline <= num_layers + 2 else ""
        _divides("pipeline_model_parallel_size", pipeline, "num_layers", num_layers, otherwise=uneven)
        return [num_layers // pipeline] * pipeline
    between = pipeline - (first is not None) - (last is not None)
    left = num_layers - (first or 0) - (last or 0)
    if (between == 0 and left) or (between and (left < between or left % between)):
        name = "num_layers_in_last_pipeline_stage" if first is None else "num_layers_in_first_pipeline_stage"
        room = num_layers if first is None or last is None else num_layers - last
        of_others = range(between, room, between) if between else (0,)
        legal = [str(room - others) for others in of_others if room > others]
        problem = f"leaves {left} of {num_layers} layers for {between} other stages"
        raise UserError(f"train.{name}", problem, f"use {', '.join([*legal, _uneven(num_layers, pipeline)])}")
    middle = [left // between] * between if between else []
    return [*([first] if first is not None else []), *middle, *([last] if last is not None else [])]


def _uneven(num_layers: int, pipeline: int) -> str:
    return f"pipeline_model_parallel_layout: {even_layout(num_layers, pipeline)}"


def even_layout(num_layers: int, chunks: int) -> str:
    """The layout that divides layers as evenly as can be; where they do not divide, the first and the last have less.

    The two also have the embedding and the loss.
    """
    by_room = sorted(range(chunks), key=lambda chunk: chunk in (0, chunks - 1))
    more = set(by_room[: num_layers % chunks])
    counts = [num_layers // chunks + (chunk in more) for chunk in range(chunks)]
    return "E" + "|".join(f"t*{count}" if count > 1 else "t" * count for count in counts) + "L"


def check_layout(architecture: Architecture, train: TrainSettings, world_size: int) -> None:
    """UserError, with what would work, for a layout that does not divide the model, the batch or the world."""
    _check_tensor(architecture, train.tensor_model_parallel_size)
    _check_sequence(train)
    stage_layers(architecture.num_layers, train)
    names = "tensor_model_parallel_size x pipeline_model_parallel_size"
    if train.context_parallel_size > 1:
        names += " x context_parallel_size"
    needed = train.model_parallel_size
    processes = f", or start {needed} processes (train.nproc_per_node x nodes) or a multiple of it"
    _divides(names, needed, "the world", world_size, otherwise=processes)
    for size in train.batch_sizes.sizes:
        _check_batch(train, size, world_size // needed)


def _check_tensor(architecture: Architecture, tensor: int) -> None:
    names = ("num_attention_heads", "num_query_groups", "ffn_hidden_size")
    sizes = [getattr(architecture, name) for name in names]
    for name, size in zip(names, sizes, strict=True):
        _divides("tensor_model_parallel_size", tensor, name, size, legal=_divisors(math.gcd(*sizes)))


def _check_sequence(train: TrainSettings) -> None:
    context, tensor = train.context_parallel_size, train.tensor_model_parallel_size
    needs = []
    if context > 1:
        needs.append(("2 x context_parallel_size", 2 * context, "another context_parallel_size"))
    if train.sequence_parallel:
        name = "tensor_model_parallel_size" + (" x context_parallel_size" if context > 1 else "")
        needs.append((name, tensor * context, "leave out sequence_parallel"))
    for name, unit, other in needs:
        if train.seq_length % unit:
            above = -(-train.seq_length // unit) * unit
            problem = f"{train.seq_length} is no multiple of {name} = {unit}"
            raise UserError("train.seq_length", problem, f"use {above}, or {other}")


def _check_batch(train: TrainSettings, size: int, replicas: int) -> None:
    """One of the run's batch sizes: micro batches alike on all replicas, as many as the schedule takes at once."""
    names, unit, other = "micro_batch_size x data-parallel size", train.micro_batch_size * replicas, ""
    if train.virtual_pipeline_model_parallel_size and size % unit == 0:
        names, unit = f"{names} x pipeline_model_parallel_size", unit * train.pipeline_model_parallel_size
        other = ", or leave out virtual_pipeline_model_parallel_size"
    if size % unit:
        below, above = size // unit * unit, (size // unit + 1) * unit
        raise UserError(
            "train.global_batch_size" if size == train.global_batch_size else "train.step_batch_size_schedule",
            f"{size} is no multiple of {names} = {unit}",
            (f"use {below} or {above}" if below else f"use {above}") + other,
        )


def _divisors(whole: int) -> list[int]:
    return [size for size in range(1, min(whole, 64) + 1) if whole % size == 0]


def _divides(
    setting: str, parts: int, name: str, whole: int, legal: Sequence[int] | None = None, otherwise: str = ""
) -> None:
    """UserError where `parts` does not divide `whole`; `legal` are the sizes that would do, by default its divisors."""
    if whole % parts:
        sizes = ", ".join(map(str, _divisors(whole) if legal is None else legal))
        mend = f"use one of {sizes}{otherwise}" if sizes else otherwise.removeprefix(", or ")
        raise UserError(f"train.{setting}", f"{parts} does not divide {name} ({whole})", mend)
