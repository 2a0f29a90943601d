"""A checksum of the tokens that entered the model, so that a run's record says what was drawn and not what was meant.

Of a sequence: the upper 32 bits of the sum over places p of (token + 1) * m(p), modulo 2^64, where m(p) is splitmix64
of p, made odd.  Checksums of up to 2^20 sequences add up exactly in a float64.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from data_prep.order import splitmix64_of


def checksums(tokens: torch.Tensor) -> torch.Tensor:
    """The checksum of each sequence of `tokens`, int64 [batch, sequence] -> int64 [batch], each in [0, 2^32)."""
    mixed = ((tokens + 1) * _multipliers(tokens.shape[1], tokens.device)).sum(1)
    return (mixed >> 32) & 0xFFFFFFFF


@functools.lru_cache(maxsize=8)
def _multipliers(length: int, device: torch.device) -> torch.Tensor:
    odd = splitmix64_of(np.arange(length, dtype=np.uint64)) | np.uint64(1)
    return torch.from_numpy(odd.view(np.int64)).to(device)
