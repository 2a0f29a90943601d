"""Best fit: each item goes to the open sequence that it leaves the least room in; at most `window` are open.

Pure and deterministic; memory is that of the open sequences.  The rooms that are there stand in the bits of one whole
number, so that the smallest one that is large enough is found by two operations, however many sequences are open.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

# A part of a document: (document, offset, length).
Rows = Sequence[tuple[int, int, int]]


class BestFit:
    """Sequences of at most `capacity` tokens; those that are closed go to `emit`, in the order of their closing."""

    def __init__(self, capacity: int, window: int, emit: Callable[[list[tuple[int, int, int]]], None]) -> None:
        self.capacity, self.window = capacity, max(1, window)
        self._emit = emit
        self._open: dict[int, deque[list[tuple[int, int, int]]]] = {}
        self._rooms = 0  # bit r: a sequence with room r is open
        self._count = 0

    @property
    def full(self) -> bool:
        """Whether another sequence cannot be opened before one is closed."""
        return self._count >= self.window

    def smallest_room(self, length: int) -> int | None:
        """The least room that `length` tokens fit into; None if there is none."""
        larger = self._rooms >> length
        return length + (larger & -larger).bit_length() - 1 if larger else None

    def put(self, rows: Rows, length: int, room: int) -> None:
        """Adds an item to the open sequence of that room that has been open the longest."""
        sequences = self._open[room]
        sequence = sequences.popleft()
        if not sequences:
            self._rooms ^= 1 << room
        sequence.extend(rows)
        if room == length:
            self._count -= 1
            self._emit(sequence)
        else:
            self._keep(sequence, room - length)

    def begin(self, rows: Rows, length: int) -> None:
        """Opens a sequence with an item; closes the one with the least room first, if need be."""
        if length == self.capacity:
            self._emit(list(rows))
            return
        if self.full:
            self.close_fullest()
        self._count += 1
        self._keep(list(rows), self.capacity - length)

    def close_fullest(self) -> None:
        """Closes the sequence with the least room; of several the one that has been open the longest."""
        room = (self._rooms & -self._rooms).bit_length() - 1
        sequences = self._open[room]
        self._emit(sequences.popleft())
        if not sequences:
            self._rooms ^= 1 << room
        self._count -= 1

    def least_room(self) -> int | None:
        """The room of the fullest open sequence; None if none is open."""
        return (self._rooms & -self._rooms).bit_length() - 1 if self._rooms else None

    def close(self) -> None:
        """Closes all, the fullest first."""
        while self._count:
            self.close_fullest()

    def _keep(self, sequence: list[tuple[int, int, int]], room: int) -> None:
        self._open.setdefault(room, deque()).append(sequence)
        self._rooms |= 1 << room
