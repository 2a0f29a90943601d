"""The optimizer and its learning-rate schedule, counted in samples."""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_ipt.mcore import config as configs
from megatron_ipt.settings import TrainSettings

__all__ = [
    "MegatronOptimizer",
    "OptimizerParamScheduler",
    "build",
    "build_schedule",
    "groups_as_saved",
    "learning_rate",
    "step",
    "zero_grad",
]


def build(train: TrainSettings, chunks: Sequence[DistributedDataParallel]) -> MegatronOptimizer:
    """Megatron's optimizer over the wrapped chunks; norms and biases have no weight decay."""
    config = configs.optimizer_config(train)
    optimizer = get_megatron_optimizer(config, list(chunks), config_overrides=get_standard_config_overrides(config))
    chunks[0].config.grad_scale_func = optimizer.scale_loss
    return optimizer


def build_schedule(
    train: TrainSettings, optimizer: MegatronOptimizer, consumed_samples: int
) -> OptimizerParamScheduler:
    """The learning rate as a function of samples, standing at `consumed_samples`.

    It is made from the recipe each time and not kept in checkpoints, so a resumed run with other `lr_decay_iters`
    follows its own recipe.
    """
    batch = train.global_batch_size
    schedule = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=train.lr,
        min_lr=train.min_lr,
        lr_warmup_steps=train.lr_warmup_iters * batch,
        lr_decay_steps=max(train.lr_decay_iters or train.train_iters, 1) * batch,
        lr_decay_style=train.lr_decay_style,
        start_wd=train.weight_decay,
        end_wd=train.weight_decay,
        wd_incr_steps=max(train.train_iters, 1) * batch,
        wd_incr_style="constant",
        wsd_decay_steps=(train.lr_wsd_decay_iters or 0) * batch or None,
        lr_wsd_decay_style="cosine",
    )
    schedule.step(consumed_samples)
    return schedule


@contextmanager
def groups_as_saved(optimizer: MegatronOptimizer, train: TrainSettings, saved: Mapping[str, Any]) -> Iterator[None]:
    """Lets a checkpoint of a run with another learning rate be loaded within; afterwards `train`'s rates hold.

    Megatron knows a saved parameter group by its `max_lr` and `min_lr`, and takes both from the checkpoint.
    """
    _set_rates(optimizer, float(saved.get("lr", train.lr)), float(saved.get("min_lr", train.min_lr)))
    yield
    _set_rates(optimizer, train.lr, train.min_lr)


def _set_rates(optimizer: MegatronOptimizer, max_lr: float, min_lr: float) -> None:
    for group in optimizer.param_groups:
        group["max_lr"], group["min_lr"] = max_lr, min_lr


def step(optimizer: MegatronOptimizer) -> tuple[bool, float]:
    """One update from the gradients in the buffers: (whether it was made, gradient norm before clipping)."""
    updated, norm, _ = optimizer.step()
    return bool(updated), float(norm)


def zero_grad(optimizer: MegatronOptimizer, chunks: Sequence[DistributedDataParallel]) -> None:
    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()


def learning_rate(optimizer: MegatronOptimizer) -> float:
    """The current learning rate of the first group."""
    groups: list[dict[str, Any]] = optimizer.param_groups
    return float(groups[0]["lr"])
