"""Policy `chains`: no question without its text.

A document that fits stands in a sequence whole, beside others that it fits with.  One that does not is cut between its
texts, and a text that with its pairs exceeds a sequence keeps the leading pairs that fit; the rest follow with the text
repeated.  Room that would be left over is filled with the leading texts of another document, each with all its pairs;
then padded.

A text longer than a sequence is cut anywhere, as raw text must be, and its pairs are dropped and counted.  So are the
texts and pairs of a longer document that does not tell which pair is about which text (pair_order.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from data_prep.indexing.spans import SpansReader
from data_prep.packing.pair_order import PairOrder
from data_prep.packing.table import PackReport, PackWriter
from data_prep.packing.units import TEXT, Part, Row, Unit, parts_of, rows_of, units_of
from data_prep.packing.window import Item, Window

# Items that wait at once: the more, the better one fits, and the more memory it takes.  The oldest may be cut.
WINDOW, CUTTABLE = 1024, 64
# Room that is left as it is, and room that is left for another item to fit into; parts of a sequence.
TOLERANCE, RESERVE = 0.01, 0.15
_SEQUENCES = 1 << 14

LONG_PAIR = "pairs longer than the room beside their text"
PAIRS_OF_LONG_TEXT = "pairs of a text longer than a sequence"
PAIRS_UNTOLD = "pairs of a long document that does not tell which text they are about"
ONE_TOKEN = "documents of one token"


class ChainPacker:
    """Packs documents, one after the other; `finish` packs what still waits.

    With `cuttable` 0, no document that fits is cut, and nothing filled.  `order` tells what the spans do not.
    """

    def __init__(
        self,
        seq_length: int,
        spans: SpansReader | None,
        writer: PackWriter,
        window: int = WINDOW,
        cuttable: int = CUTTABLE,
        order: PairOrder | None = None,
    ) -> None:
        self._capacity = seq_length + 1  # the last token of a sequence is a label only
        self._tolerance, self._reserve = int(TOLERANCE * seq_length), int(RESERVE * seq_length)
        self._spans, self._writer, self._most = spans, writer, window
        self._order = order or PairOrder(known=False)
        self._window = Window(self._capacity, cuttable, self._units)
        self._counts: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._waiting_counts: list[int] = []
        self._waiting_rows: list[Row] = []

    def add(self, documents: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        """Packs documents that come some at a time: their numbers, and their lengths [tokens]."""
        for numbers, lengths in documents:
            for document, length in zip(numbers.tolist(), lengths.tolist(), strict=True):
                if length > self._capacity:
                    self._counts["documents"] += self._cut(document, length)
                elif length > 1:
                    self._counts["documents"] += 1
                    self._window.enter(Item(document, [(document, 0, length)], length))
                else:
                    self._dropped[ONE_TOKEN] += 1
                while len(self._window) >= self._most:
                    self._make_sequence()

    def finish(self) -> PackReport:
        """Packs what waits, and gives the report."""
        while self._window:
            self._make_sequence()
        self._flush()
        counts, tokens = self._counts, self._counts["tokens"]
        return PackReport(
            documents=counts["documents"],
            tokens=tokens,
            labels=counts["labels"],
            padding=self._writer.sequences * self._capacity - tokens,
            cut_documents=counts["cut_documents"],
            repeated_tokens=counts["repeated_tokens"],
            dropped={reason: count for reason, count in self._dropped.items() if count},
        )

    def _make_sequence(self) -> None:
        """A sequence of what has waited the longest and of what fits beside it."""
        window, item = self._window, self._window.oldest()
        left = self._capacity - item.length
        if item.heads and self._tolerance < left < window.smallest():
            taken = self._take_head(item, len(item.heads))  # nothing fits beside all of it
        else:
            taken = window.take(item)
        sequence, room = list(taken[0]), self._capacity - taken[1]
        while room and (found := self._beside(room)):
            sequence += found[0]
            room -= found[1]
        self._counts["labels"] += self._capacity - room - 1 - _breaks(sequence)
        self._waiting_counts.append(len(sequence))
        self._waiting_rows += sequence
        if len(self._waiting_counts) == _SEQUENCES:
            self._flush()

    def _beside(self, room: int) -> tuple[Sequence[Row], int] | None:
        """What goes into the room of a sequence: what fills it, or leaves enough for another item, or is longest."""
        window = self._window
        whole = window.whole(room)
        if whole and room - whole.length <= self._tolerance:
            return window.take(whole)
        if item := window.leaving(room, self._reserve):
            return window.take(item)
        head = window.head(room)
        if head and (not whole or head[0].heads[head[1] - 1] > whole.length):
            return self._take_head(*head)
        return window.take(whole) if whole else None

    def _take_head(self, item: Item, count: int) -> tuple[Sequence[Row], int]:
        self._counts["cut_documents"] += not item.is_part
        return self._window.cut(item, count)

    def _cut(self, document: int, length: int) -> bool:
        """Lets the parts of a document that exceeds a sequence wait; whether there are any."""
        items, together = list[Item](), list[Unit]()
        for unit in self._units(document, length):
            if together and unit.stop - together[0].start > self._capacity:
                items.append(_item(document, together))
                together = []
            if unit.stop - unit.start > self._capacity:
                items += self._cut_unit(document, unit)
            else:
                together.append(unit)
        if together:
            items.append(_item(document, together))
        for item in items:
            item.is_part = True
            self._window.enter(item)
        self._counts["cut_documents"] += bool(items)
        return bool(items)

    def _cut_unit(self, document: int, unit: Unit) -> list[Item]:
        """A text that with its pairs exceeds a sequence, in items."""
        whole = parts_of(*self._spans.columns(document)) if self._spans else [Part(TEXT, unit.start, unit.stop)]
        parts = [part for part in whole if unit.start <= part.start < unit.stop]
        text = [part for part in parts if part.pair == TEXT]
        pairs: dict[int, list[Part]] = {}
        for part in parts:
            if part.pair != TEXT:
                pairs.setdefault(part.pair, []).append(part)
        size = _tokens(text)
        if size > self._capacity:
            self._dropped[PAIRS_UNTOLD if text[1:] else PAIRS_OF_LONG_TEXT] += len(pairs)
            return [item for row in rows_of(document, text)[0] for item in self._cut_text(*row)]
        kept: list[list[Part]] = [[]] if text else []
        room = self._capacity - size
        for pair in pairs.values():
            length = _tokens(pair)
            if length > self._capacity - size:
                self._dropped[LONG_PAIR] += 1
                continue
            if not kept or length > room:
                kept, room = [*kept, []], self._capacity - size
            kept[-1] += pair
            room -= length
        self._counts["repeated_tokens"] += size * max(0, len(kept) - 1)
        groups = [sorted([*text, *group], key=lambda part: part.start) for group in kept]
        return [Item(document, *rows_of(document, group), units=()) for group in groups]

    def _cut_text(self, document: int, offset: int, length: int) -> list[Item]:
        """A text cut anywhere: each item starts with the last label of the one before."""
        items = []
        for start in range(0, max(1, length - 1), self._capacity - 1):
            size = min(self._capacity, length - start)
            items.append(Item(document, [(document, offset + start, size)], size, ()))
        return items

    def _units(self, document: int, length: int) -> list[Unit]:
        if self._spans is None:
            return [Unit(0, length)]
        return units_of(*self._spans.columns(document), self._order.has_pairs_first(document))

    def _flush(self) -> None:
        rows = np.array(self._waiting_rows, np.int64).reshape(-1, 3)
        self._writer.add(np.array(self._waiting_counts, np.int64), rows)
        self._counts["tokens"] += int(rows[:, 2].sum())
        self._waiting_counts, self._waiting_rows = [], []


def _breaks(sequence: Sequence[Row]) -> int:
    """Pieces that do not go on where the one before them ends: the first label of each is masked."""
    return sum(row[:2] != (before[0], before[1] + before[2]) for before, row in pairwise(sequence))


def _item(document: int, units: Sequence[Unit]) -> Item:
    start, length = units[0].start, units[-1].stop - units[0].start
    return Item(document, [(document, start, length)], length, units)


def _tokens(parts: Sequence[Part]) -> int:
    return sum(part.stop - part.start for part in parts)
