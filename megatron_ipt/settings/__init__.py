"""Settings of a training run: one pydantic model a concern, under Megatron's names.

model.py          the model
layout.py         which rank computes what
optimization.py   what a step computes
checkpoint.py     what is written, and gone on from
train.py          all of training
"""

from megatron_ipt.settings.model import ModelSettings
from megatron_ipt.settings.train import FREE_TO_CHANGE, TrainSettings

__all__ = ["FREE_TO_CHANGE", "ModelSettings", "TrainSettings"]
