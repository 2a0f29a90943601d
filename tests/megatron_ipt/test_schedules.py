"""The learning rate at each sample, against the formulas; how the batch grows, against megatron-core's calculator."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from forks import forked_python
from pydantic import ValidationError

from megatron_ipt.settings import TrainSettings
from megatron_ipt.settings.batches import BatchSizes

BASE: dict[str, Any] = {"seq_length": 8, "train_iters": 25, "global_batch_size": 4, "lr": 1e-3, "min_lr": 1e-4}
# the optimizer is a stand-in with parameter groups; each group's own rates are there, as Megatron makes them
RATES = """
import json, sys
from types import SimpleNamespace
from data_prep.errors import UserError
from megatron_ipt.settings import TrainSettings
from megatron_ipt.training.schedules import Schedule
jobs, falling, ramps = json.loads(sys.argv[1])
found = {}
for name, job in jobs.items():
    train = TrainSettings.model_validate(job)
    group = {"lr": 0.0, "max_lr": train.lr, "min_lr": train.min_lr, "wd_mult": 1.0}
    optimizer = SimpleNamespace(param_groups=[group])
    straight, rates = Schedule(train, optimizer, 0), []
    for sample in range(0, 204, 4):
        rates.append(group["lr"])
        straight.step(4)
    again = []
    for sample in range(0, 204, 4):
        Schedule(train, optimizer, sample)
        again.append(group["lr"])
    assert (group["max_lr"], group["min_lr"]) == (train.lr, train.min_lr)
    found[name] = [rates, again]
try:
    Schedule(TrainSettings.model_validate(falling), SimpleNamespace(param_groups=[{}]), 0)
except UserError as error:
    found["falling"] = str(error)
from megatron.core.num_microbatches_calculator import StepBatchsizeNumMicroBatchesCalculator as Calculator
for schedule in ramps:
    calculator, consumed, sizes = Calculator(1, 1, False, 1, schedule), 0, []
    for _ in range(60):
        calculator.update(consumed, False)
        sizes.append(calculator.get_current_global_batch_size())
        consumed += sizes[-1]
    found[schedule] = sizes
print(json.dumps(found))
"""


def cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


def one(
    sample: int, warmup: int, decay: int, shape: Any, low: float = 1e-4, high: float = 1e-3, start: float = 0.0
) -> float:
    """Linear warm-up from `start`, then `shape` of the part done, then `low`."""
    if warmup and sample <= warmup:
        return start + (high - start) * sample / warmup
    done = min(1.0, (sample - warmup) / (decay - warmup))
    return low + (high - low) * shape(done)


WSD_SHAPES = {
    "linear": lambda part: 1 - part,
    "cosine": cosine,
    "exponential": lambda part: 2 * 0.5**part - 1,
    "minus_sqrt": lambda part: 1 - math.sqrt(part),
}


def wsd(sample: int, shape: Any) -> float:
    """Decay of 100 samples, the last 30 of them in `shape`."""
    return 1e-4 + 9e-4 * (1.0 if sample <= 70 else shape(min(1.0, (sample - 70) / 30)))


def rewarmed(sample: int) -> float:
    """Cosine over 60 samples; from 48 up to 8e-4 in 20, down to 1e-4 at 128; from 140 on at once 2e-4, for 40."""
    if sample < 48:
        return one(sample, 0, 60, cosine)
    if sample < 140:
        return one(sample - 48, 20, 80, cosine, high=8e-4, start=one(48, 0, 60, cosine))
    return one(sample - 140, 0, 40, cosine, high=2e-4, low=0.0)


REWARM = [
    {"at_samples": 48, "lr": 8e-4, "warmup_samples": 20, "decay_samples": 80},
    {"at_samples": 140, "lr": 2e-4, "warmup_samples": 0, "decay_samples": 40, "min_lr": 0.0},
]
JOBS: dict[str, tuple[dict[str, Any], Any]] = {
    "iterations": ({"lr_warmup_iters": 5}, lambda sample: one(sample, 20, 100, cosine)),
    "samples": (
        {"lr_warmup_samples": 18, "lr_decay_samples": 130, "lr_warmup_init": 2e-4},
        lambda sample: one(sample, 18, 130, cosine, start=2e-4),
    ),
    "linear": ({"lr_decay_style": "linear"}, lambda sample: one(sample, 0, 100, lambda part: 1 - part)),
    "constant": ({"lr_decay_style": "constant"}, lambda sample: 1e-3),
    "ramp": (
        {"step_batch_size_schedule": "0:2 20:4", "lr_warmup_iters": 12},  # ten steps of two samples, two of four
        lambda sample: one(sample, 28, 80, cosine),  # 25 steps are 20 + 60 samples
    ),
    **{
        f"wsd_{name}": (
            {"lr_decay_style": "WSD", "lr_wsd_decay_samples": 30, "lr_wsd_decay_style": name},
            lambda sample, shape=shape: wsd(sample, shape),
        )
        for name, shape in WSD_SHAPES.items()
    },
    "rewarm": ({"lr_decay_samples": 60, "lr_rewarm": REWARM}, rewarmed),
}


FALLING = {"at_samples": 4, "lr": 5e-4, "warmup_samples": 8, "decay_samples": 20}
RAMPS = ["0:4", "0:4 32:8", "0:4 30:8 100:24", "0:1,7:2,0.05K:6", "0:8 3:4"]


@pytest.fixture(scope="module")
def rates() -> Any:
    jobs = {name: {**BASE, **settings} for name, (settings, _) in JOBS.items()}
    return forked_python(RATES, json.dumps([jobs, {**BASE, "lr_rewarm": [FALLING]}, RAMPS]))


@pytest.mark.parametrize("name", JOBS)
def test_the_rate_is_the_formulas_step_by_step_and_after_a_resume(name: str, rates: Any) -> None:
    wanted = [JOBS[name][1](sample) for sample in range(0, 204, 4)]
    straight, resumed = rates[name]
    assert straight == pytest.approx(wanted, rel=1e-12)
    assert straight == resumed


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"lr_warmup_samples": 100, "lr_decay_samples": 90}, "the warm-up, 100 samples, must be shorter"),
        ({"lr_warmup_iters": 2, "lr_warmup_samples": 8}, "set lr_warmup_iters or lr_warmup_samples, not both"),
        ({"lr_rewarm": list(reversed(REWARM))}, "do not rise"),
        ({"lr_rewarm": [{**REWARM[0], "warmup_samples": 80}]}, "must be less than decay_samples=80"),
        ({"step_batch_size_schedule": "0:2 20:8"}, "ends in batches of 8, global_batch_size is 4"),
        ({"step_batch_size_schedule": "8:4"}, "do not rise from 0"),
        ({"step_batch_size_schedule": "0:2 4"}, "'4' is not FIRST_SAMPLE:BATCH"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TrainSettings.model_validate({**BASE, **settings})


def test_a_rise_to_below_the_rate_reached_is_refused(rates: Any) -> None:
    assert rates["falling"].startswith("train.lr_rewarm[0].lr: 0.0005 is below 0.00099")


@pytest.mark.parametrize("schedule", RAMPS)
def test_the_batch_grows_as_megatrons(schedule: str, rates: Any) -> None:
    sizes, wanted = BatchSizes.parse(schedule), rates[schedule]
    consumed = [sum(wanted[:step]) for step in range(61)]
    assert [sizes.consumed_after(step) for step in range(61)] == consumed
    for begun in (0, 1, 5, 17):
        steps = list(sizes.steps(consumed[begun], 60 - begun))
        assert [(step.start, len(step)) for step in steps] == list(zip(consumed[begun:], wanted[begun:], strict=False))
