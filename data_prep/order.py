"""The order of documents in a pack table, and of sequences in an epoch: a seeded permutation that is a formula.

A Feistel network permutes [0, 2^b), b the bits of size - 1; walking its cycle until the value falls
below `size` makes it a permutation of [0, size).  The halves may be uneven, so at most two steps are
expected.  Two rounds are visibly not random, three pass the usual tests; six are used.
"""

from __future__ import annotations

import numpy as np
import xxhash

ROUNDS = 6
_MASK = 2**64 - 1


def splitmix64(value: int) -> int:
    """One step of splitmix64 (Steele, Lea and Flood 2014): 64 bits in, 64 well mixed bits out."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def splitmix64_of(values: np.ndarray) -> np.ndarray:
    """`splitmix64` of each value, uint64, shaped as `values`."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class Permutation:
    """A permutation of [0, size), seeded by (seed, source, epoch); `p[k]` costs some microseconds, `many` less each."""

    __slots__ = ("_keys", "_left_mask", "_right_bits", "_right_mask", "size")

    def __init__(self, size: int, seed: int, source: str, epoch: int) -> None:
        """Errors: a ValueError for a size below one."""
        if size < 1:
            raise ValueError(f"a permutation of {size} things")
        self.size = size
        bits = (size - 1).bit_length()
        self._right_bits = bits - bits // 2
        self._left_mask, self._right_mask = (1 << bits // 2) - 1, (1 << self._right_bits) - 1
        key = splitmix64(seed & _MASK) ^ xxhash.xxh3_64_intdigest(source.encode())
        key = splitmix64(splitmix64(key) ^ epoch)
        self._keys = tuple(splitmix64(key ^ number) for number in range(ROUNDS))

    def __getitem__(self, index: int) -> int:
        """Where `index` goes.  Errors: an IndexError outside [0, size)."""
        if not 0 <= index < self.size:
            raise IndexError(f"{index} of {self.size}")
        value = self._network(index)
        while value >= self.size:
            value = self._network(value)
        return value

    def many(self, start: int, stop: int) -> np.ndarray:
        """Where [start, stop) go, int64.  Errors: an IndexError outside [0, size)."""
        if not 0 <= start <= stop <= self.size:
            raise IndexError(f"[{start}, {stop}) of {self.size}")
        values = self._network_of(np.arange(start, stop, dtype=np.uint64))
        while (walking := np.flatnonzero(values >= self.size)).size:
            values[walking] = self._network_of(values[walking])
        return values.astype(np.int64)

    def _network_of(self, values: np.ndarray) -> np.ndarray:
        bits = np.uint64(self._right_bits)
        left, right = values >> bits, values & np.uint64(self._right_mask)
        for number, key in enumerate(self._keys):
            if number % 2:
                left ^= splitmix64_of(right ^ np.uint64(key)) & np.uint64(self._left_mask)
            else:
                right ^= splitmix64_of(left ^ np.uint64(key)) & np.uint64(self._right_mask)
        return left << bits | right

    def _network(self, value: int) -> int:
        left, right = value >> self._right_bits, value & self._right_mask
        for number, key in enumerate(self._keys):
            if number % 2:
                left ^= splitmix64(right ^ key) & self._left_mask
            else:
                right ^= splitmix64(left ^ key) & self._right_mask
        return left << self._right_bits | right
