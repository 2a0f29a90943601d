"""What must fit together before step 1: data, model, and the checkpoint to go on from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from data_prep import blend as blends
from data_prep import packing
from data_prep.blend import mistakes
from data_prep.blend.checks import read_plan
from data_prep.blend.file import pack_paths
from data_prep.errors import UserError
from data_prep.indexing.verify import verify_sample
from megatron_ipt.architecture import Architecture
from megatron_ipt.data.stream import BlendStream, HeldOut, SequentialStream, ValidationStream
from megatron_ipt.mcore import checkpoint as checkpoints
from megatron_ipt.mcore import integrity, parallel
from megatron_ipt.mcore.checkpoint import RunCard
from megatron_ipt.mcore.run_card import versions
from megatron_ipt.paths import RunPaths
from megatron_ipt.recipe import Recipe, section
from megatron_ipt.settings import FREE_TO_CHANGE, ModelSettings, TrainSettings
from megatron_ipt.training.metrics import Metrics

logger = logging.getLogger(__name__)

BLOCKS = 4
"""Blocks (64 MiB) of a dataset that a rank reads at the start of training: about a tenth of a second each."""

WHERE_PLANNED = mistakes.Words(allow="say allow: [{}] where the blend is planned")


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins: at the checkpoint `path`, whose card is `card`, or anew.

    `fresh`: nothing of it counts but weights; so too without a checkpoint.  `damaged` are newer ones, passed over.
    """

    path: Path | None = None
    card: RunCard | None = None
    fresh: bool = True
    damaged: Sequence[UserError] = ()

    @property
    def resumed(self) -> RunCard | None:
        """The card of a run that goes on; None for a fresh one."""
        return None if self.fresh else self.card

    @property
    def iteration(self) -> int:
        return 0 if self.resumed is None else self.resumed.iteration

    @property
    def consumed_samples(self) -> int:
        return 0 if self.resumed is None else self.resumed.consumed_samples


def find(train: TrainSettings, save: Path) -> Start:
    """The checkpoint to begin with, the newest whole one below `save`, or `train.load`.  All ranks call it."""
    with integrity.trusting(train.trust_checkpoint):
        path, damaged = checkpoints.newest_whole(save, train.load)
    if path is None:
        return Start()
    return Start(path, RunCard.read(path), train.finetune and path.parent != save, damaged)


def open_data(train: TrainSettings, paths: RunPaths) -> tuple[BlendStream, tuple[HeldOut, ...]]:
    """The training stream and the held-out ones, if there are any; UserError where lengths are unlike.

    Held out are the sets that the recipe names, and what the blend's split sets apart of each source.
    """
    stream = BlendStream(train.blend or paths.blend, reset_position_ids=train.reset_position_ids)
    if stream.seq_length != train.seq_length:
        raise UserError(
            "train.seq_length", f"{train.seq_length} is not the blend's {stream.seq_length}", "set both to the same"
        )
    held_out: list[HeldOut] = [_held_out(name, prefix, train, stream) for name, prefix in _held_out_sets(train, paths)]
    for source in stream.blend.sources:
        if source.validation:
            apart = ValidationStream(stream.blend, source, reset_position_ids=train.reset_position_ids)
            if apart.name in [dataset.name for dataset in held_out]:
                problem = "is the name of a held-out set and of a source that has a validation set of its own"
                raise UserError(f"train.held_out.{apart.name}", problem, "give the held-out set another name")
            held_out.append(apart)
    return stream, tuple(held_out)


def _held_out_sets(train: TrainSettings, paths: RunPaths) -> list[tuple[str, Path]]:
    """(name, prefix) of each held-out set; of the recipe's own only where it was written."""
    if isinstance(train.held_out, dict):
        return list(train.held_out.items())
    prefix = train.held_out or paths.held_out_prefix
    there = train.held_out is not None or prefix.with_name(prefix.name + ".idx").exists()
    return [(prefix.name, prefix)] if there else []


def _held_out(name: str, prefix: Path, train: TrainSettings, stream: BlendStream) -> SequentialStream:
    held_out = SequentialStream(prefix, train.seq_length, name, reset_position_ids=train.reset_position_ids)
    if held_out.tokenizer != stream.blend.tokenizer:
        raise UserError(prefix, "was tokenized unlike the blend", "index it with the same tokenizer and policy")
    return held_out


def verify_data(stream: BlendStream, held_out: Sequence[HeldOut], seed: int) -> None:
    """Reads a sample of the data's blocks and all pack tables, spread over all ranks; opening looks at little of each.

    Each rank reads BLOCKS of each dataset, others for another `seed`, which is equal on all ranks, and its share of the
    tables: a damaged one would give other samples without a word.
    Errors: a UserError on all ranks, naming the file, and the block, that is damaged on any of them.
    """
    prefixes = {source.prefix for source in stream.blend.sources} | {dataset.prefix for dataset in held_out}
    rank, ranks = parallel.place()

    def share() -> UserError | None:
        try:
            for prefix in sorted(prefixes):
                verify_sample(prefix, rank, ranks, blocks=BLOCKS * ranks, seed=seed)
            for path in pack_paths(stream.blend)[rank::ranks]:
                packing.open_pack(path, check_bytes=True)
        except UserError as error:
            return error
        return None

    for fault in filter(None, parallel.on_all(share)):
        raise fault


def check_held_out(
    stream: BlendStream, held_out: Sequence[HeldOut], recipe: Recipe, card: RunCard | None = None
) -> None:
    """Main rank looks for held-out text in the blend's sources; a warning is logged where that could not be checked.

    Passed over are the validation sets of the blend's own split, sets that plan.json says were checked with it, and all
    of them where `card` is of a run that began with the same ones and goes on with the same blend.
    Errors: a UserError on all ranks for a set of which a text is trained on, unless the recipe's blend, or the plan,
    has it in `allow`.
    """
    blend, train = stream.blend, section(recipe, "train")
    if card is not None and card.blend_hash == blend.hash and not _held_out_changed(card, train):
        return
    _, checks = read_plan(blend.folder / "plan.json", blend) if blend.folder else (None, None)
    known = {held.data_hash for held in checks.held_out.values()} if checks else set()
    allow = {*(checks.allow if checks else ()), *(recipe.blend.allow if recipe.blend else ())}
    named = [each for each in held_out if isinstance(each, SequentialStream) and each.data_hash not in known]

    def found() -> UserError | list[str]:
        try:
            where = [(f"train.held_out, set '{each.name}'", each.prefix) for each in named]
            lines = [mistakes.check_held_out(*each, blend, blend.sources, allow, WHERE_PLANNED) for each in where]
        except UserError as error:
            return error
        return [line for each in lines for line in each]

    told = parallel.on_main(found)
    if isinstance(told, UserError):
        raise told
    for line in told:
        logger.warning("%s", line)


def _held_out_changed(card: RunCard, train: TrainSettings) -> bool:
    now = train.model_dump(mode="json", include={"held_out"})["held_out"]
    return bool(card.recipe.get("train", {}).get("held_out") != now)


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
    card: RunCard, architecture: Architecture, vocab_size: int, blend: blends.Blend | None, start: Path | None
) -> None:
    """UserError when the checkpoint is of another model, or of another past of the data."""
    if card.architecture != architecture or card.padded_vocab_size != vocab_size:
        mine, theirs = architecture.to_json(), card.architecture.to_json()
        unlike = [f"{name} {theirs[name]} there, {mine[name]} here" for name in mine if mine[name] != theirs[name]]
        unlike = unlike or [f"padded vocabulary {card.padded_vocab_size} there, {vocab_size} here"]
        raise UserError(
            start, f"another model's checkpoint ({'; '.join(unlike)})", "use its own recipe or another save"
        )
    if blend is not None and start is not None:
        if not card.blend_hash:
            raise UserError(start, "holds weights alone, no place in any data", "begin with it: train.finetune=true")
        blends.check_continues(blend, card.blend_hash, card.consumed_samples, start)


def check_changes(card: RunCard, recipe: Recipe, start: Path) -> None:
    """What a resumed run changes: a warning while there are steps left, a UserError when there are none.

    With none left, "done" would be said of settings that were never trained with.
    """
    train = section(recipe, "train")
    changed = changes(card.recipe, recipe.model_dump(mode="json", exclude_none=True))
    if not changed:
        return
    if card.iteration >= train.train_iters:
        raise UserError(
            start,
            f"is the end of a run with other settings ({', '.join(changed)})",
            "to train with these, give another output_dir or train.save; to go on, raise train.train_iters",
        )
    logger.warning("%s goes on, it is not repeated, with other settings: %s", start, ", ".join(changed))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings of two resolved recipes that change what a step computes, as `key before -> now`.

    A setting that a recipe of before did not know has its default there.
    """
    found = []
    for name, model in (("train", TrainSettings), ("model", ModelSettings)):
        optional = {key: field.default for key, field in model.model_fields.items() if not field.is_required()}
        defaults = to_jsonable_python(optional, exclude_none=True)
        old, new = ({**defaults, **_with_decay(recipe.get(name, {}))} for recipe in (before, now))
        keys = sorted((set(old) | set(new)) - FREE_TO_CHANGE)
        found += [f"{name}.{key} {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]
    return found


def _with_decay(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the length of the decay written out: it follows train_iters where it is not given."""
    decays = settings.get("lr_decay_style", "constant") != "constant"
    given = settings.get("lr_decay_samples") is not None
    implied = {"lr_decay_iters": settings.get("train_iters")} if decays and not given else {}
    return {**implied, **settings}


def tell_damaged(damaged: Sequence[UserError], start: Path, iteration: int, metrics: Metrics) -> None:
    """A warning and a line of metrics for each checkpoint that was passed over."""
    for error in damaged:
        logger.warning("%s: %s; %s is the newest whole one", error.where, error.problem, start)
        metrics.write("fell_back", iteration, path=Path(error.where).name, reason=error.problem, to=start.name)


def make_card(
    recipe: Recipe, model: ModelSettings, architecture: Architecture, vocab_size: int, blend_hash: str
) -> RunCard:
    return RunCard(
        iteration=0,
        consumed_samples=0,
        architecture=architecture,
        padded_vocab_size=vocab_size,
        blend_hash=blend_hash,
        load_hf=str(model.load_hf.absolute()) if model.load_hf else "",
        versions=versions(),
        recipe=recipe.model_dump(mode="json", exclude_none=True),
    )
