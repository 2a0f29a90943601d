"""What a training run holds on one rank, and how it is set up: data, model, weights, optimizer, place to go on from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from megatron_ipt.architecture import Architecture, check_layout, padded_vocab_size, with_settings
from megatron_ipt.convert.families import read_architecture
from megatron_ipt.convert.load_hf import load_hf
from megatron_ipt.convert.parity import gate
from megatron_ipt.data.stream import BlendStream, HeldOut
from megatron_ipt.mcore import checkpoint as checkpoints
from megatron_ipt.mcore import config as configs
from megatron_ipt.mcore import model as models
from megatron_ipt.mcore import optimizer as optimizers
from megatron_ipt.mcore import user_buffers
from megatron_ipt.mcore.checkpoint import RunCard
from megatron_ipt.mcore.checkpoint_saver import Saver
from megatron_ipt.mcore.graphs import Graphs
from megatron_ipt.mcore.optimizer import MegatronOptimizer
from megatron_ipt.mcore.parallel import Ranks
from megatron_ipt.paths import RunPaths
from megatron_ipt.recipe import Recipe, section
from megatron_ipt.settings import ModelSettings, TrainSettings
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
    start = starts.find(train, save)
    starts.verify_data(stream, held_out, seed=start.iteration)
    starts.check_held_out(stream, held_out, recipe, start.resumed)
    if start.card is not None:
        blend = None if start.fresh else stream.blend
        starts.check_continues(start.card, architecture, vocab_size, blend, start.path)

    # a run with a folder of its own has metrics of its own
    log = paths.metrics if train.save is None else train.save / paths.metrics.name
    further = sinks.asked_for(train, recipe.name, log.parent, start.iteration) if ranks.is_main else []
    metrics = Metrics(
        log, is_main=ranks.is_main, resumed_from=start.iteration, train_iters=train.train_iters, sinks=further
    )
    config = configs.transformer_config(architecture, train)
    configs.check_runs_here(config, train)
    overlaps = user_buffers.allocate(config, train)
    chunks = models.build(architecture, config, train, vocab_size)
    _fill(chunks, start, model, train, architecture, vocab_size, metrics)
    dog = watchdog.of_run(train.hang_seconds, launched.tell)
    wrapped = models.wrap(chunks, config, train, dog.reduces)
    optimizer = optimizers.build(train, wrapped)
    _go_on(start, wrapped, optimizer, recipe, metrics)
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
        schedule=Schedule(train, optimizer, start.consumed_samples),
        spikes=spikes.restored({} if start.resumed is None else start.resumed.spikes),
        shadow=shadow.restored({} if start.resumed is None else start.resumed.shadow),
        quarantine=Quarantine(log.with_name("quarantine.jsonl"), start.iteration) if ranks.is_main else None,
        watchdog=dog,
        flops=flops_per_token(architecture, train.seq_length),
        metrics=metrics,
        card=new_card,
        saver=Saver(save, train, start.path, told=partial(metrics.write, "checkpoint")),
        graphs=Graphs(train, wrapped, optimizer, rank=ranks.rank, replicas=ranks.data_parallel_size),
        overlaps=overlaps,
        iteration=start.iteration,
        consumed_samples=start.consumed_samples,
        drawn=Drawn(stream.blend),
    )


def _fill(
    chunks: Sequence[torch.nn.Module],
    start: starts.Start,
    model: ModelSettings,
    train: TrainSettings,
    architecture: Architecture,
    vocab_size: int,
    metrics: Metrics,
) -> None:
    """The weights that a fresh run begins with, before an optimizer is made of them; a run that goes on comes later."""
    if start.path is not None and start.fresh:
        checkpoints.load(start.path, chunks, None, verified=True)
    elif start.path is None and model.load_hf:
        if train.parity_gate:
            metrics.write("parity", 0, **gate(model.load_hf, architecture, train, vocab_size).to_json())
        load_hf(chunks, model.load_hf, architecture)


def _go_on(
    start: starts.Start,
    chunks: Sequence[torch.nn.Module],
    optimizer: MegatronOptimizer,
    recipe: Recipe,
    metrics: Metrics,
) -> None:
    """The weights and the optimizer's state of a run that goes on; where this one begins is told."""
    if start.path is None:
        return
    if start.resumed is not None:
        starts.check_changes(start.resumed, recipe, start.path)
        with optimizers.groups_as_saved(optimizer, section(recipe, "train"), start.resumed.recipe.get("train", {})):
            checkpoints.load(start.path, chunks, optimizer, verified=True)
    logger.info("continuing from %s at iteration %d, sample %d", start.path, start.iteration, start.consumed_samples)
    starts.tell_damaged(start.damaged, start.path, start.iteration, metrics)
