"""Filling weights that may stand in FP8 (`fp8_param`) before an optimizer is made of them.

Such a weight carries what it was made from, unrounded, for the optimizer's fp32 master; in a model that is then filled
with other weights that would be the random start.  So what is filled in is put there too (Transformer Engine's
`get_high_precision_init_val`, pytorch/module/base.py).  For other weights nothing more than a copy is done.
"""

from __future__ import annotations

import torch


def fill_weight(parameter: torch.Tensor, value: torch.Tensor) -> None:
    """`value` into a parameter of the same shape, and into what its master will be made from."""
    parameter.copy_(value)
    keep_for_masters(parameter, value)


def keep_for_masters(parameter: torch.Tensor, value: torch.Tensor) -> None:
    """`value`, which stands in `parameter` already, for its master alone."""
    kept = getattr(parameter, "get_high_precision_init_val", lambda: None)()
    if kept is not None:
        kept.copy_(value)
