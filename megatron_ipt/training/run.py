"""What a training run holds on one rank, and how it is set up: data, model, weights, optimizer, place to go on from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from megatron_ipt.architecture import check_layout, padded_vocab_size, with_settings
from megatron_ipt.convert.families import read_architecture
from megatron_ipt.convert.load_hf import load_hf
from megatron_ipt.convert.parity import gate
from megatron_ipt.data.stream import BlendStream, HeldOut
from megatron_ipt.mcore import checkpoint as checkpoints
from megatron_ipt.mcore import config as configs
from megatron_ipt.mcore import integrity, user_buffers
from megatron_ipt.mcore import model as models
from megatron_ipt.mcore import optimizer as optimizers
from megatron_ipt.mcore.checkpoint import RunCard
from megatron_ipt.mcore.checkpoint_saver import Saver
from megatron_ipt.mcore.graphs import Graphs
from megatron_ipt.mcore.optimizer import MegatronOptimizer
from megatron_ipt.mcore.parallel import Ranks
from megatron_ipt.paths import RunPaths
from megatron_ipt.recipe import Recipe, section
from megatron_ipt.settings import TrainSettings
from megatron_ipt.training import launched, sinks, watchdog
from megatron_ipt.training import start as starts
from megatron_ipt.training.flops import Flops, flops_per_token
from megatron_ipt.training.metrics import Drawn, Metrics
from megatron_ipt.training.quarantine import Quarantine
from megatron_ipt.training.schedules import Schedule
from megatron_ipt.training.shadow import Shadow
from megatron_ipt.training.spikes import SpikeRule
from megatron_ipt.training.watchdog import Watchdog

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Run:
    """Everything a training run holds on one rank.

    `iteration` and `consumed_samples` are where it stands, `saved` is the iteration this process saved last;
    `quarantine` is the main rank's; `overlaps`: buffers stand for tensor-parallel communication.
    """

    train: TrainSettings
    ranks: Ranks
    stream: BlendStream
    held_out: Sequence[HeldOut]
    chunks: list[torch.nn.Module]
    optimizer: MegatronOptimizer
    schedule: Schedule
    spikes: SpikeRule
    shadow: Shadow
    quarantine: Quarantine | None
    watchdog: Watchdog
    flops: Flops
    metrics: Metrics
    card: RunCard
    saver: Saver
    graphs: Graphs
    overlaps: bool
    iteration: int
    consumed_samples: int
    drawn: Drawn
    saved: int = -1

    def close(self) -> None:
        """Gives back what stands outside of this process's memory, in whatever state the run is."""
        self.graphs.close()
        if self.overlaps:
            user_buffers.free()
        self.metrics.close()


def setup(recipe: Recipe, train: TrainSettings, ranks: Ranks) -> Run:
    """Data, model, weights, the parity gate, optimizer, and the checkpoint to go on from, in this order."""
    paths = RunPaths(recipe.output_dir)
    model = section(recipe, "model")
    sinks.check(train)
    stream, held_out = starts.open_data(train, paths)
    architecture = with_settings(read_architecture(model.load_hf) if model.load_hf else None, model)
    check_layout(architecture, train, ranks.world_size)
    starts.check_vocabulary(stream, architecture, model.load_hf)
    vocab_size = padded_vocab_size(architecture, model, train)
    save = train.save or paths.checkpoints
    with integrity.trusting(train.trust_checkpoint):
        start, damaged = checkpoints.newest_whole(save, train.load)
    card = checkpoints.RunCard.read(start) if start else None
    fresh = card is None or (train.finetune and start is not None and start.parent != save)
    iteration, consumed = (0, 0) if card is None or fresh else (card.iteration, card.consumed_samples)
    starts.verify_data(stream, held_out, seed=iteration)
    starts.check_held_out(stream, held_out, recipe, None if fresh else card)
    if card is not None:
        starts.check_continues(card, architecture, vocab_size, None if fresh else stream.blend, start)

    # a run with a folder of its own has metrics of its own
    log = paths.metrics if train.save is None else train.save / paths.metrics.name
    further = sinks.asked_for(train, recipe.name, log.parent, iteration) if ranks.is_main else []
    metrics = Metrics(log, is_main=ranks.is_main, resumed_from=iteration, train_iters=train.train_iters, sinks=further)
    config = configs.transformer_config(architecture, train)
    configs.check_runs_here(config, train)
    overlaps = user_buffers.allocate(config, train)
    chunks = models.build(architecture, config, train, vocab_size)
    if model.load_hf and card is None:
        if train.parity_gate:
            metrics.write("parity", 0, **gate(model.load_hf, architecture, train, vocab_size).to_json())
        load_hf(chunks, model.load_hf, architecture)
    elif start is not None and fresh:
        checkpoints.load(start, chunks, None, verified=True)
    dog = watchdog.of_run(train.hang_seconds, launched.tell)
    wrapped = models.wrap(chunks, config, train, dog.reduces)
    optimizer = optimizers.build(train, wrapped)
    if start is not None and card is not None:
        if not fresh:
            _go_on(start, card, wrapped, optimizer, recipe)
        logger.info("continuing from %s at iteration %d, sample %d", start, iteration, consumed)
        starts.tell_damaged(damaged, start, iteration, metrics)
    spikes = SpikeRule(train.spike_sigma, train.spike_window, train.most_skips_in_a_row)
    shadow = Shadow(train.fp8_shadow_interval, train.fp8_shadow_tolerance, train.fp8_fallback_iters)
    new_card = starts.make_card(recipe, model, architecture, vocab_size, stream.blend_hash)
    return Run(
        train=train,
        ranks=ranks,
        stream=stream,
        held_out=held_out,
        chunks=wrapped,
        optimizer=optimizer,
        schedule=Schedule(train, optimizer, consumed),
        spikes=spikes.restored({} if card is None or fresh else card.spikes),
        shadow=shadow.restored({} if card is None or fresh else card.shadow),
        quarantine=Quarantine(log.with_name("quarantine.jsonl"), iteration) if ranks.is_main else None,
        watchdog=dog,
        flops=flops_per_token(architecture, train.seq_length),
        metrics=metrics,
        card=new_card,
        saver=Saver(save, train, start, told=partial(metrics.write, "checkpoint")),
        graphs=Graphs(train, wrapped, optimizer, rank=ranks.rank, replicas=ranks.data_parallel_size),
        overlaps=overlaps,
        iteration=iteration,
        consumed_samples=consumed,
        drawn=Drawn(stream.blend),
    )


def _go_on(
    start: Path, card: RunCard, chunks: Sequence[torch.nn.Module], optimizer: MegatronOptimizer, recipe: Recipe
) -> None:
    """The weights and the optimizer's state of `start`, into a run that goes on from it."""
    starts.check_changes(card, recipe, start)
    with optimizers.groups_as_saved(optimizer, section(recipe, "train"), card.recipe.get("train", {})):
        checkpoints.load(start, chunks, optimizer, verified=True)
