"""The micro batches of one step on one rank, as tensors.

A step consumes samples [first, first + global_batch_size).  Data-parallel rank d of n takes first + d, first + d + n,
...: the same global batch for any n, so a run may go on with another number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from megatron_ipt.data.stream import Sample

FIELDS = ("tokens", "labels", "position_ids", "loss_mask")


def indices(first: int, global_batch_size: int, rank: int, size: int) -> range:
    """The samples of one step that data-parallel rank `rank` of `size` reads."""
    return range(first + rank, first + global_batch_size, size)


def micro_batches(
    sample: Callable[[int], Sample], samples: Sequence[int], micro_batch_size: int, device: str
) -> Iterator[Mapping[str, torch.Tensor]]:
    """Batches of `micro_batch_size` samples on `device`.

    Shapes are [micro batch, sequence]: tokens, labels, position_ids int64; loss_mask float32.
    """
    for start in range(0, len(samples), micro_batch_size):
        rows = [sample(index) for index in samples[start : start + micro_batch_size]]
        yield {name: torch.from_numpy(np.stack([getattr(row, name) for row in rows])).to(device) for name in FIELDS}
