"""The optimizer and its learning-rate schedule, counted in samples."""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
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
    "build_scheduler",
    "gradient_norm",
    "groups_as_saved",
    "learning_rate",
    "rates_lent",
    "step",
    "zero_grad",
]


def build(train: TrainSettings, chunks: Sequence[DistributedDataParallel]) -> MegatronOptimizer:
    """Megatron's optimizer over the wrapped chunks; norms and biases have no weight decay."""
    config = configs.optimizer_config(train)
    optimizer = get_megatron_optimizer(config, list(chunks), config_overrides=get_standard_config_overrides(config))
    chunks[0].config.grad_scale_func = optimizer.scale_loss
    return optimizer


def build_scheduler(
    train: TrainSettings, optimizer: MegatronOptimizer, *, init_lr: float, max_lr: float, min_lr: float, **steps: Any
) -> OptimizerParamScheduler:
    """Megatron's schedule from `init_lr` over `max_lr` to `min_lr`, in the run's style, standing at its start.

    `steps`, in samples: lr_warmup_steps, lr_decay_steps, wsd_decay_steps.
    """
    with rates_lent(optimizer, train, max_lr, min_lr):
        return OptimizerParamScheduler(
            optimizer,
            init_lr=init_lr,
            max_lr=max_lr,
            min_lr=min_lr,
            lr_decay_style=train.lr_decay_style,
            start_wd=train.weight_decay,
            end_wd=train.weight_decay,
            wd_incr_steps=1,
            wd_incr_style="constant",
            lr_wsd_decay_style=train.lr_wsd_decay_style,
            **steps,
        )


@contextmanager
def rates_lent(optimizer: MegatronOptimizer, train: TrainSettings, max_lr: float, min_lr: float) -> Iterator[None]:
    """Within, a scheduler sees other rates; afterwards `train`'s hold.

    A parameter group's own `max_lr` and `min_lr` win over the scheduler's, and name the group in checkpoints.
    """
    _set_rates(optimizer, max_lr, min_lr)
    yield
    _set_rates(optimizer, train.lr, train.min_lr)


def groups_as_saved(
    optimizer: MegatronOptimizer, train: TrainSettings, saved: Mapping[str, Any]
) -> AbstractContextManager[None]:
    """Lets a checkpoint of a run with another learning rate be loaded within; afterwards `train`'s rates hold.

    Megatron knows a saved parameter group by its `max_lr` and `min_lr`, and takes both from the checkpoint.
    """
    return rates_lent(optimizer, train, float(saved.get("lr", train.lr)), float(saved.get("min_lr", train.min_lr)))


def _set_rates(optimizer: MegatronOptimizer, max_lr: float, min_lr: float) -> None:
    for group in optimizer.param_groups:
        group["max_lr"], group["min_lr"] = max_lr, min_lr


def gradient_norm(optimizer: MegatronOptimizer) -> float:
    """The global norm of the gradients in the buffers, before clipping: the same that a step computes, bit for bit."""
    optimizer.prepare_grads()
    return float(optimizer.get_grad_norm())


def step(optimizer: MegatronOptimizer) -> None:
    """One update from the gradients in the buffers."""
    optimizer.step()


def zero_grad(optimizer: MegatronOptimizer, chunks: Sequence[DistributedDataParallel]) -> None:
    """Before a step's first forward pass.

    Weights in MXFP8 that are gathered behind that pass share a buffer with the gradients: once it is zero, they are put
    there from their masters.
    """
    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    optimizer.prepare_model_params_for_param_sync()


def learning_rate(optimizer: MegatronOptimizer) -> float:
    """The current learning rate of the first group."""
    groups: list[dict[str, Any]] = optimizer.param_groups
    return float(groups[0]["lr"])
