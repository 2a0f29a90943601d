"""The learning rate as stretches of samples: the first warm-up and decay, then one stretch for each re-warming.

A stretch that re-warms begins at the rate that the one before it has reached, rises linearly to its own peak in
`warmup` samples, and decays to `min_lr` from there until `decay` samples after its start, in the run's style.  What the
rate is at a sample, megatron-core's scheduler says: one for each stretch.

Nothing of this is kept in checkpoints, so a resumed run with other `lr_decay_iters` follows its own recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_prep.errors import UserError
from megatron_ipt.settings import TrainSettings

if TYPE_CHECKING:
    from megatron_ipt.mcore.optimizer import MegatronOptimizer, OptimizerParamScheduler


@dataclass(frozen=True, slots=True)
class Stretch:
    """From sample `start` on.  `warmup`, `decay` (warm-up included) and `wsd_decay` are counted from there [samples].

    `init_lr` None: the rate that is reached at `start`.
    """

    start: int
    init_lr: float | None
    max_lr: float
    min_lr: float
    warmup: int
    decay: int
    wsd_decay: int | None


def stretches(train: TrainSettings) -> tuple[Stretch, ...]:
    """The run's stretches in rising order; the first starts at sample 0."""
    warmup, decay, wsd_decay = train.schedule_samples
    first = Stretch(0, train.lr_warmup_init, train.lr, train.min_lr, warmup, decay, wsd_decay)
    again = [
        Stretch(
            rewarm.at_samples,
            None,
            rewarm.lr,
            train.min_lr if rewarm.min_lr is None else rewarm.min_lr,
            rewarm.warmup_samples,
            rewarm.decay_samples,
            rewarm.wsd_decay_samples or wsd_decay,
        )
        for rewarm in train.lr_rewarm
    ]
    return (first, *again)


class Schedule:
    """The rate of the optimizer as a function of the samples consumed."""

    def __init__(self, train: TrainSettings, optimizer: MegatronOptimizer, consumed_samples: int) -> None:
        """Stands at `consumed_samples`.  UserError for a re-warming that would have to fall."""
        self._train, self._optimizer, self._stretches = train, optimizer, stretches(train)
        self._schedulers: list[OptimizerParamScheduler] = []
        for number, stretch in enumerate(self._stretches):
            init_lr = self._reached(stretch.start) if stretch.init_lr is None else stretch.init_lr
            if stretch.warmup and init_lr > stretch.max_lr:
                raise UserError(
                    f"train.lr_rewarm[{number - 1}].lr",
                    f"{stretch.max_lr:g} is below {init_lr:g}, the rate reached at sample {stretch.start}",
                    "raise it, or set its warmup_samples to 0",
                )
            self._schedulers.append(self._scheduler(stretch, min(init_lr, stretch.max_lr)))
        self._consumed = consumed_samples
        self.step(0)

    def step(self, samples: int) -> None:
        """Go on by `samples`; the optimizer then has the rate of the place reached."""
        from megatron_ipt.mcore import optimizer as optimizers

        self._consumed += samples
        number = max(index for index, stretch in enumerate(self._stretches) if stretch.start <= self._consumed)
        scheduler, stretch = self._schedulers[number], self._stretches[number]
        with optimizers.rates_lent(self._optimizer, self._train, stretch.max_lr, stretch.min_lr):
            scheduler.step(self._consumed - stretch.start - scheduler.num_steps)

    def _reached(self, sample: int) -> float:
        """The rate of the last stretch known so far, at `sample`."""
        scheduler, stretch = self._schedulers[-1], self._stretches[len(self._schedulers) - 1]
        scheduler.num_steps = sample - stretch.start
        return float(scheduler.get_lr({"max_lr": stretch.max_lr, "min_lr": stretch.min_lr}))

    def _scheduler(self, stretch: Stretch, init_lr: float) -> OptimizerParamScheduler:
        from megatron_ipt.mcore import optimizer as optimizers

        return optimizers.build_scheduler(
            self._train,
            self._optimizer,
            init_lr=init_lr,
            max_lr=stretch.max_lr,
            min_lr=stretch.min_lr,
            lr_warmup_steps=stretch.warmup,
            lr_decay_steps=stretch.decay,
            wsd_decay_steps=stretch.wsd_decay,
        )
