"""The checksum of what entered the model, against the definition in whole numbers of Python."""

from __future__ import annotations

import numpy as np
import torch

from data_prep.order import splitmix64
from megatron_ipt.mcore.checksum import checksums


def by_definition(tokens: list[int]) -> int:
    total = sum((token + 1) * (splitmix64(place) | 1) for place, token in enumerate(tokens))
    return total % 2**64 >> 32


def test_it_is_what_its_definition_says() -> None:
    rng = np.random.default_rng(1)
    for length in (1, 7, 4096):
        tokens = rng.integers(0, 128_256, (5, length))
        found = checksums(torch.from_numpy(tokens))
        assert found.dtype == torch.int64
        assert found.tolist() == [by_definition(row) for row in tokens.tolist()]


def test_another_token_or_order_is_another_checksum() -> None:
    tokens = torch.arange(512)[None]
    swapped, changed = tokens.clone(), tokens.clone()
    swapped[0, [3, 300]] = tokens[0, [300, 3]]
    changed[0, 511] += 1
    assert len({int(checksums(each)) for each in (tokens, swapped, changed, torch.zeros_like(tokens))}) == 4
