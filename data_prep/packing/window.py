"""What waits for a place in a sequence: a bounded window of items, from which a sequence takes those that fit best.

Pure and deterministic.  Which lengths are there stands in the bits of one whole number, so that the largest one that
fits is found by two operations, however many items wait.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from data_prep.packing.units import Row, Unit

# Items that are looked at for one that leaves room for another.
_LOOKED_AT = 16


@dataclass(eq=False, slots=True)
class Item:
    """Tokens that stand in one sequence: all of `rows`, or the leading `units` of them.

    `units` is None for a document that was not looked at yet, and empty for what is not to be cut; it may be cut where
    `heads` are, the lengths of its beginnings.  `is_part` says that other tokens of the document stand elsewhere.
    """

    document: int
    rows: Sequence[Row]
    length: int
    units: Sequence[Unit] | None = None
    is_part: bool = False
    heads: list[int] = field(default_factory=list)


class ByLength[T]:
    """Things by their length, those of one length in the order in which they came."""

    def __init__(self, most: int) -> None:
        self._things: list[dict[T, None]] = [{} for _ in range(most + 1)]
        self._lengths = 0  # bit n: there is something of length n

    def add(self, length: int, thing: T) -> None:
        self._things[length][thing] = None
        self._lengths |= 1 << length

    def remove(self, length: int, thing: T) -> None:
        del self._things[length][thing]
        if not self._things[length]:
            self._lengths ^= 1 << length

    def largest(self, most: int) -> T | None:
        """The first thing of the largest length up to `most`."""
        there = self._lengths & ((1 << most + 1) - 1)
        return next(iter(self._things[there.bit_length() - 1])) if there else None

    def smallest(self, otherwise: int) -> int:
        """The smallest length that is there."""
        return (self._lengths & -self._lengths).bit_length() - 1 if self._lengths else otherwise


class Window:
    """The items that wait.  About `cuttable` of the oldest may be cut between their units, which `units_of` knows."""

    def __init__(self, capacity: int, cuttable: int, units_of: Callable[[int, int], Sequence[Unit]]) -> None:
        self._capacity, self._cuttable, self._units_of = capacity, cuttable, units_of
        self._waiting: OrderedDict[Item, None] = OrderedDict()
        self._whole_so_far: deque[Item] = deque()  # not looked at yet, some of them taken
        self._with_heads = 0
        self._wholes = ByLength[Item](capacity)
        self._heads = ByLength[tuple[Item, int]](capacity)

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, item: Item, first: bool = False) -> None:
        """Adds an item, behind all others or before them."""
        self._waiting[item] = None
        self._wholes.add(item.length, item)
        if first:
            self._waiting.move_to_end(item, last=False)
            self._look_at(item)
        elif self._cuttable:
            self._whole_so_far.append(item)

    def oldest(self) -> Item:
        """The item that has waited the longest, once those that may be cut are known; there must be one."""
        while self._whole_so_far and self._with_heads < self._cuttable:
            item = self._whole_so_far.popleft()
            if item in self._waiting:
                self._look_at(item)
        return next(iter(self._waiting))

    def _look_at(self, item: Item) -> None:
        if item.units is None:
            item.units = self._units_of(item.document, item.length)
        item.heads = [unit.stop - item.units[0].start for unit in item.units[:-1]]
        self._with_heads += bool(item.heads)
        for count, length in enumerate(item.heads, 1):
            self._heads.add(length, (item, count))

    def smallest(self) -> int:
        """The least number of tokens that can be taken; the capacity if there is nothing."""
        return min(self._wholes.smallest(self._capacity), self._heads.smallest(self._capacity))

    def whole(self, room: int) -> Item | None:
        """The longest item that fits into `room` tokens."""
        return self._wholes.largest(room)

    def head(self, room: int) -> tuple[Item, int] | None:
        """The longest beginning of an item that fits into `room` tokens, and its number of units."""
        return self._heads.largest(room)

    def leaving(self, room: int, least: int) -> Item | None:
        """One of the oldest items that leaves at least that much of `room`."""
        return next((item for item in islice(self._waiting, _LOOKED_AT) if room - item.length >= least), None)

    def take(self, item: Item) -> tuple[Sequence[Row], int]:
        """Removes an item; gives its rows and its length."""
        del self._waiting[item]
        self._wholes.remove(item.length, item)
        for count, length in enumerate(item.heads, 1):
            self._heads.remove(length, (item, count))
        self._with_heads -= bool(item.heads)
        item.heads = []
        return item.rows, item.length

    def cut(self, item: Item, count: int) -> tuple[Sequence[Row], int]:
        """Removes the first `count` units of an item, and lets the others wait before all; gives rows and length."""
        self.take(item)
        assert item.units is not None
        units, start, stop = item.units[count:], item.units[0].start, item.units[count].start
        length = item.length - (stop - start)
        self.enter(Item(item.document, [(item.document, stop, length)], length, units, is_part=True), first=True)
        return [(item.document, start, stop - start)], stop - start
