"""A recipe: one YAML file with dotted overrides -> typed settings under Megatron's names.

Each top-level section holds the settings of one step of `ipt run`; a section that is left out is a
step that does not run.  `torchrun -m megatron_ipt.pretrain --recipe R` reads the same file and
needs `model` and `train` only.  `${...}` refers to another key of the file (OmegaConf).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, Field, ValidationError, model_validator
from yaml import YAMLError

from data_prep.errors import UserError, nearest
from data_prep.settings import (
    BlendSettings,
    CheckSettings,
    FetchSettings,
    IndexSettings,
    RenderSettings,
    Settings,
    SynthesizeSettings,
)


class ModelSettings(Settings):
    """The model: read from a Hugging Face directory; any of its numbers may be set here instead."""

    load_hf: Path | None = Field(None, description="Hugging Face directory to read configuration and weights from")
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
    vocab_size: int | None = Field(None, ge=2, description="tokens of the vocabulary, before padding")
    share_embeddings_and_output_weights: bool | None = Field(None, description="tie input and output embeddings")
    init_method_std: float | None = Field(None, gt=0, description="standard deviation of freshly made weights")
    make_vocab_size_divisible_by: int = Field(
        128, ge=1, description="the vocabulary is padded to a multiple of this times tensor_model_parallel_size"
    )


class TrainSettings(Settings):
    """ipt train: layout, batch, optimizer, schedule, checkpoints.  Names are Megatron's."""

    blend: Path | None = Field(None, description="blend.json of `ipt blend plan`; default: the recipe's own")
    nproc_per_node: int = Field(1, ge=1, description="processes `ipt train` starts on this machine (torchrun's name)")
    tensor_model_parallel_size: int = Field(1, ge=1, description="ways each layer's matrices are split")
    pipeline_model_parallel_size: int = Field(1, ge=1, description="stages the layers are split into")
    virtual_pipeline_model_parallel_size: int | None = Field(
        None, ge=2, description="model chunks a pipeline rank holds (interleaved schedule)"
    )
    context_parallel_size: int = Field(1, ge=1, description="ways each sequence is split; each rank has 2 chunks of it")
    sequence_parallel: bool = Field(False, description="split norms over the sequence too; needs tensor parallelism")
    micro_batch_size: int = Field(1, ge=1, description="sequences of one forward pass on one rank [samples]")
    global_batch_size: int = Field(ge=1, description="sequences of one step over all ranks [samples]")
    seq_length: int = Field(ge=2, description="sequence length [tokens]")
    reset_attention_mask: bool = Field(False, description="attend within a document only, not over a whole sequence")
    reset_position_ids: bool = Field(
        False, description="positions restart with each document; needs reset_attention_mask"
    )
    train_iters: int = Field(ge=0, description="steps of the whole run, resumed ones included [steps]")
    lr: float = Field(gt=0, description="peak learning rate")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the decay")
    lr_decay_style: Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"] = Field(
        "cosine", description="shape of the decay (Megatron's OptimizerParamScheduler)"
    )
    lr_decay_iters: int | None = Field(None, ge=1, description="steps the decay takes; default train_iters [steps]")
    lr_warmup_iters: int = Field(0, ge=0, description="steps of linear warm-up from 0 [steps]")
    lr_wsd_decay_iters: int | None = Field(None, ge=1, description="with WSD: length of the final decay [steps]")
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay; norms and biases have none")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="first-moment decay")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="second-moment decay")
    adam_eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    clip_grad: float = Field(1.0, ge=0, description="largest global gradient norm; 0 does not clip")
    bf16: bool = Field(True, description="parameters and activations in bfloat16, masters in fp32; false: all fp32")
    use_distributed_optimizer: bool = Field(True, description="shard optimizer state over data-parallel ranks")
    overlap_grad_reduce: bool = Field(False, description="reduce gradients while the backward pass runs")
    overlap_param_gather: bool = Field(False, description="gather parameters while the forward pass runs")
    transformer_impl: Literal["auto", "local", "transformer_engine"] = Field(
        "auto", description="whose layers: Transformer Engine's, megatron-core's local ones; auto: TE where it imports"
    )
    seed: int = Field(1234, description="seed of freshly made weights")
    save: Path | None = Field(None, description="folder of checkpoints; default: the recipe's own")
    save_interval: int | None = Field(None, ge=1, description="steps between checkpoints; the last is always saved")
    stop_file: Path | None = Field(
        None, description="when this file appears, the run saves and ends after the step in hand; rank 0 must see it"
    )
    load: Path | None = Field(None, description="folder of checkpoints to continue from; default: `save`")
    finetune: bool = Field(False, description="load weights only: fresh optimizer, schedule and data position")
    held_out: Path | dict[str, Path] | None = Field(
        None, description="dataset prefix for validation, or name -> prefix of several; default: the recipe's own"
    )
    eval_interval: int | None = Field(None, ge=1, description="steps between validations")
    eval_iters: int = Field(8, ge=1, description="global batches of one validation [steps]")
    log_interval: int = Field(1, ge=1, description="steps between lines of metrics.jsonl")
    parity_gate: bool = Field(True, description="refuse to start when loaded weights do not give transformers' logits")
    transformer_config: dict[str, Any] = Field({}, description="further fields of megatron-core's TransformerConfig")
    optimizer_config: dict[str, Any] = Field({}, description="further fields of megatron-core's OptimizerConfig")
    ddp_config: dict[str, Any] = Field({}, description="further fields of its DistributedDataParallelConfig")

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one replica; context-parallel ranks share a sequence, so they count as one."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    @model_validator(mode="after")
    def _schedule_fits(self) -> TrainSettings:
        decay = self.lr_decay_iters or self.train_iters
        if self.train_iters and self.lr_warmup_iters >= decay:
            raise ValueError(
                f"lr_warmup_iters={self.lr_warmup_iters} must be less than lr_decay_iters (default train_iters)={decay}"
            )
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr} must not exceed lr={self.lr}")
        if (self.lr_decay_style == "WSD") != (self.lr_wsd_decay_iters is not None):
            raise ValueError("lr_wsd_decay_iters goes with lr_decay_style: WSD, and only with it")
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise ValueError("sequence_parallel needs tensor_model_parallel_size > 1")
        if self.reset_position_ids and not self.reset_attention_mask:
            raise ValueError(
                "reset_position_ids needs reset_attention_mask: Megatron's rotary embedding goes by the place in the "
                "sequence, so positions of a document alone would change nothing where attention crosses documents"
            )
        if self.virtual_pipeline_model_parallel_size and self.pipeline_model_parallel_size == 1:
            raise ValueError("virtual_pipeline_model_parallel_size needs pipeline_model_parallel_size > 1")
        if self.overlap_param_gather and not (self.use_distributed_optimizer and self.overlap_grad_reduce):
            raise ValueError("overlap_param_gather needs use_distributed_optimizer and overlap_grad_reduce")
        return self


class EvaluateSettings(Settings):
    """ipt evaluate: bits per byte of held-out text (lm-eval, loglikelihood_rolling)."""

    max_tokens: int = Field(16384, ge=1, description="text scored of each set, whole documents [tokens]")
    self_made_tokens: int = Field(4096, ge=1, description="text scored of a set that was trained on [tokens]")
    max_length: int = Field(512, ge=16, description="window the model reads [tokens]")
    batch_size: int = Field(4, ge=1, description="windows scored together [sequences]")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="the model's number format while scored")
    prefix_token: str | None = Field(
        None, description="token before the first; default: the dataset's end-of-document token"
    )


class ReportSettings(Settings):
    """ipt report: one self-contained HTML page."""

    title: str = Field("Instruction Pre-Training", description="heading of the page")
    documents: int = Field(3, ge=0, description="documents shown with their pairs [documents]")
    smoothing: float = Field(0.8, ge=0, lt=1, description="weight of the past in the smoothed loss curve")


class Recipe(Settings):
    """All steps of one run.  `output_dir` holds whatever the steps write."""

    name: str = Field(description="name of the run")
    output_dir: Path = Field(description="folder of everything the run writes")
    fetch: FetchSettings | None = None
    synthesize: SynthesizeSettings | None = None
    check: CheckSettings | None = None
    render: RenderSettings | None = None
    index: IndexSettings | None = None
    blend: BlendSettings | None = None
    model: ModelSettings | None = None
    train: TrainSettings | None = None
    evaluate: EvaluateSettings | None = None
    report: ReportSettings | None = None


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path`, as `load_settings` reads it."""
    return load_settings(Recipe, path, overrides)


def load_settings[Model: Settings](model: type[Model], path: Path, overrides: Sequence[str] = ()) -> Model:
    """Read `path`, apply dotted `overrides` (`train.train_iters=5`), and check every key and value.

    Raises UserError for a missing file, bad YAML, an unknown key (with the nearest legal one) or a
    value of the wrong kind.
    """
    for override in overrides:
        if "=" not in override or override.startswith("-"):
            raise UserError(override, "not an override", "write it as section.key=value")
    try:
        loaded = OmegaConf.load(path)
        if not isinstance(loaded, DictConfig):
            raise UserError(path, "not a mapping", "its top level must be a mapping of keys")
        merged = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))
        raw = OmegaConf.to_container(merged, resolve=True)
    except FileNotFoundError as error:
        raise UserError(path, "no such file", "give the path of a YAML file") from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(path, f"not readable YAML ({error})", "mend it") from error
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError(path, *_explain(model, error)) from error


def nearest_few(name: str, legal: Iterable[str]) -> str:
    """A mend for an unknown name where hundreds are legal: the one it must mean, or a few that look like it."""
    names = sorted(legal)
    if difflib.get_close_matches(name, names, n=1, cutoff=0.5):
        return nearest(name, names)
    few = difflib.get_close_matches(name, names, n=4, cutoff=0.0)
    return f"the nearest names are {', '.join(few)}; `ipt train --settings` lists the keys of a run"


def _explain(model: type[Settings], error: ValidationError) -> tuple[str, str]:
    """The first fault of a validation error as (problem, mend); a misspelt key before the one it leaves missing."""
    first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        section = _model_at(model, location[:-1])
        legal = section.model_fields if section else ()
        mend = nearest_few if location[0] in ("train", "model") else nearest
        return f"unknown key '{key}'", mend(location[-1], legal)
    if first["type"] == "missing":
        return f"key '{key}' is missing", "set it in the file or as an override"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key}: {message}" if key else message, ""
    return f"{key}={first['input']!r}: {message}", ""


def _model_at(model: type[BaseModel], location: Sequence[str]) -> type[BaseModel] | None:
    """The settings class that stands at a dotted location below `model`."""
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            return model if issubclass(model, BaseModel) else None
        classes = [found for found in _classes(field.annotation) if issubclass(found, BaseModel)]
        if not classes:
            return None
        model = classes[0]
    return model


def _classes(annotation: Any) -> Iterator[type]:
    """Every class named in a type annotation."""
    if isinstance(annotation, type) and not getattr(annotation, "__args__", ()):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _classes(argument)


def section(recipe: Recipe, name: str) -> Any:
    """A section that the caller needs; UserError when the recipe leaves it out."""
    value = getattr(recipe, name)
    if value is None:
        raise UserError(recipe.name, f"the recipe has no section '{name}'", f"add `{name}:` to it")
    return value


def to_yaml(recipe: Recipe) -> str:
    """The resolved settings, defaults included, as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(recipe.model_dump(mode="json", exclude_none=True)))
