"""What must fit together before step 1: data, model, and the checkpoint to go on from."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.data.stream import BlendStream, SequentialStream
from megatron_ipt.mcore.checkpoint import RunCard
from megatron_ipt.paths import RunPaths
from megatron_ipt.recipe import ModelSettings, Recipe, TrainSettings

logger = logging.getLogger(__name__)

FREE_TO_CHANGE = {"train_iters", "save_interval", "eval_interval", "eval_iters", "log_interval", "nproc_per_node"}
"""Settings of `train` that do not change what a step computes."""


def open_data(train: TrainSettings, paths: RunPaths) -> tuple[BlendStream, SequentialStream | None]:
    """The training stream and the held-out one, if there is any; UserError where lengths are unlike."""
    stream = BlendStream(train.blend or paths.blend)
    if stream.seq_length != train.seq_length:
        raise UserError(
            "train.seq_length", f"{train.seq_length} is not the blend's {stream.seq_length}", "set both to the same"
        )
    prefix = train.held_out or paths.held_out_prefix
    if train.held_out is None and not prefix.with_suffix(".idx").exists():
        return stream, None
    return stream, SequentialStream(prefix, train.seq_length)


def check_vocabulary(stream: BlendStream, architecture: Architecture, load_hf: Path | None) -> None:
    """UserError when the data was written with another tokenizer than the model's, or holds ids it has no row for."""
    if load_hf is not None and (load_hf / "tokenizer.json").exists():
        stream.blend.check_tokenizer(load_hf)
    if stream.blend.tokenizer.vocab_size > architecture.vocab_size:
        raise UserError(
            "train.blend",
            f"tokenized with {stream.blend.tokenizer.vocab_size} tokens, the model has {architecture.vocab_size}",
            "index the text with the model's own tokenizer",
        )


def check_continues(
    card: RunCard, architecture: Architecture, vocab_size: int, blend_hash: str | None, start: Path | None
) -> None:
    """UserError when the checkpoint is of another model, or of another past of the data."""
    if card.architecture != architecture or card.padded_vocab_size != vocab_size:
        mine, theirs = architecture.to_json(), card.architecture.to_json()
        unlike = [f"{name} {theirs[name]} there, {mine[name]} here" for name in mine if mine[name] != theirs[name]]
        unlike = unlike or [f"padded vocabulary {card.padded_vocab_size} there, {vocab_size} here"]
        raise UserError(
            start, f"another model's checkpoint ({'; '.join(unlike)})", "use its own recipe or another save"
        )
    if blend_hash is not None and card.blend_hash != blend_hash:
        raise UserError(
            start,
            "was trained on another blend; what it has seen would not be what this one says",
            "restore the blend, or start anew from its weights: train.load=... train.finetune=true train.save=NEW",
        )


def tell_changes(card: RunCard, recipe: Recipe, start: Path) -> None:
    """Warn when a run goes on under other training settings than the checkpoint was made with."""
    before, now = card.recipe.get("train", {}), recipe.model_dump(mode="json", exclude_none=True)["train"]
    names = sorted((set(before) | set(now)) - FREE_TO_CHANGE)
    changed = [f"{n} {before.get(n)} -> {now.get(n)}" for n in names if before.get(n) != now.get(n)]
    if changed:
        logger.warning(
            "%s was made with other settings (%s) and is continued, not repeated; "
            "to start anew give train.save another folder",
            start,
            ", ".join(changed),
        )


def make_card(
    recipe: Recipe, model: ModelSettings, architecture: Architecture, vocab_size: int, blend_hash: str
) -> RunCard:
    return RunCard(
        iteration=0,
        consumed_samples=0,
        architecture=architecture,
        padded_vocab_size=vocab_size,
        blend_hash=blend_hash,
        load_hf=str(model.load_hf or ""),
        versions={name: version(name) for name in ("torch", "megatron-core", "instruction-pretraining")},
        recipe=recipe.model_dump(mode="json", exclude_none=True),
    )
