"""Policy `chains`: no question without its text.

A document that fits goes into a sequence whole, by best fit.  One that does not is cut between its texts, and a text
that with its pairs exceeds a sequence keeps the leading pairs that fit; the rest follow with the text repeated.  Room
that would be left over is filled with the next document's leading texts, each with all of its pairs; then padded.

A text longer than a sequence is cut anywhere, as raw text must be, and its pairs are dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from data_prep.indexing.spans import SpansReader
from data_prep.packing.best_fit import BestFit
from data_prep.packing.table import PackReport, PackWriter
from data_prep.packing.units import TEXT, Part, Row, Unit, rows_of, units_of

# Sequences that are open at once: the more, the less room is left over, and the more memory it takes.
WINDOW = 1024
# A sequence with at most this part of it free is closed as it is; a fuller one would cost a cut.
TOLERANCE = 0.01
_SEQUENCES = 1 << 14

LONG_PAIR = "pairs longer than the room beside their text"
PAIRS_OF_LONG_TEXT = "pairs of a text longer than a sequence"
ONE_TOKEN = "documents of one token"


class ChainPacker:
    """Packs documents, one after the other; `finish` closes the sequences that are open."""

    def __init__(
        self, seq_length: int, window: int, spans: SpansReader | None, writer: PackWriter, fill: bool = True
    ) -> None:
        self._capacity = seq_length + 1  # the last token of a sequence is a label only
        self._tolerance = int(TOLERANCE * seq_length)
        self._fit = BestFit(self._capacity, window, self._close)
        self._spans, self._writer, self._fill = spans, writer, fill
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
                    self._place_document(document, length)
                else:
                    self._dropped[ONE_TOKEN] += 1

    def finish(self) -> PackReport:
        """Closes what is open, and gives the report."""
        self._fit.close()
        self._flush()
        counts, tokens = self._counts, self._counts["tokens"]
        return PackReport(
            documents=counts["documents"],
            tokens=tokens,
            padding=self._writer.sequences * self._capacity - tokens,
            cut_documents=counts["cut_documents"],
            repeated_tokens=counts["repeated_tokens"],
            dropped={reason: count for reason, count in self._dropped.items() if count},
        )

    def _place_document(self, document: int, length: int) -> None:
        rows = ((document, 0, length),)
        room = self._fit.smallest_room(length)
        if room is not None:
            self._fit.put(rows, length, room)
        elif self._wasteful() and (units := self._units(document, length))[1:]:
            self._counts["cut_documents"] += self._spread(document, units)
        else:
            self._fit.begin(rows, length)

    def _wasteful(self) -> bool:
        """Whether opening a sequence would leave one behind with more room than is tolerated."""
        fit = self._fit
        return self._fill and fit.full and (fit.least_room() or 0) > self._tolerance

    def _spread(self, document: int, units: Sequence[Unit]) -> bool:
        """Places units that a sequence would hold, leading ones into room that is there; whether that parted them."""
        parted = False
        while units:
            start, stop = units[0].start, units[-1].stop
            room = self._fit.smallest_room(stop - start)
            count = len(units)
            if room is None and self._wasteful():
                count, room = self._best_head(units)
            rows, length = [(document, start, units[count - 1].stop - start)], units[count - 1].stop - start
            if room is None:
                self._fit.begin(rows, length)
            else:
                self._fit.put(rows, length, room)
            units = units[count:]
            parted |= bool(units)
        return parted

    def _best_head(self, units: Sequence[Unit]) -> tuple[int, int | None]:
        """How many leading units leave the least room somewhere, and in which; all and None where none fits."""
        best, found = (self._capacity, len(units)), None
        for count, unit in enumerate(units[:-1], 1):
            length = unit.stop - units[0].start
            room = self._fit.smallest_room(length)
            if room is None:
                break
            if room - length < best[0]:
                best, found = (room - length, count), room
        return best[1], found

    def _cut(self, document: int, length: int) -> bool:
        """Places a document that exceeds a sequence; whether any of it is left."""
        placed, parted, together = 0, False, list[Unit]()
        for unit in self._units(document, length):
            if together and unit.stop - together[0].start > self._capacity:  # a longer unit, too, ends what came before
                parted |= self._spread(document, together)
                placed, together = placed + 1, []
            if unit.stop - unit.start > self._capacity:
                placed += self._cut_unit(document, unit)
            else:
                together.append(unit)
        if together:
            parted |= self._spread(document, together)
            placed += 1
        self._counts["cut_documents"] += parted or placed > 1
        return placed > 0

    def _cut_unit(self, document: int, unit: Unit) -> int:
        """Places a text that with its pairs exceeds a sequence; gives the number of items it made."""
        text = [part for part in unit.parts if part.pair == TEXT]
        pairs: dict[int, list[Part]] = {}
        for part in unit.parts:
            if part.pair != TEXT:
                pairs.setdefault(part.pair, []).append(part)
        size = _tokens(text)
        if size > self._capacity:
            self._dropped[PAIRS_OF_LONG_TEXT] += len(pairs)
            return sum(self._cut_text(row) for row in rows_of(document, text)[0])
        kept: list[list[Part]] = [[]] if text else []
        room = self._capacity - size
        for parts in pairs.values():
            length = _tokens(parts)
            if length > self._capacity - size:
                self._dropped[LONG_PAIR] += 1
                continue
            if not kept or length > room:
                kept, room = [*kept, []], self._capacity - size
            kept[-1] += parts
            room -= length
        for group in kept:
            self._place(*rows_of(document, sorted([*text, *group], key=lambda part: part.start)))
        self._counts["repeated_tokens"] += size * (len(kept) - 1) if kept else 0
        return len(kept)

    def _cut_text(self, row: Row) -> int:
        """Places a text cut anywhere: each piece starts with the last label of the one before."""
        document, offset, length = row
        starts = range(0, max(1, length - 1), self._capacity - 1)
        for start in starts:
            size = min(self._capacity, length - start)
            self._place([(document, offset + start, size)], size)
        return len(starts)

    def _place(self, rows: Sequence[Row], length: int) -> None:
        room = self._fit.smallest_room(length)
        if room is None:
            self._fit.begin(rows, length)
        else:
            self._fit.put(rows, length, room)

    def _units(self, document: int, length: int) -> list[Unit]:
        if self._spans is None:
            return [Unit(0, length, (Part(TEXT, 0, length),))]
        runs = self._spans.runs_of(document, document + 1)
        return units_of(runs.ends.tolist(), runs.of.tolist(), runs.classes.tolist())

    def _close(self, sequence: list[Row]) -> None:
        self._waiting_counts.append(len(sequence))
        self._waiting_rows += sequence
        if len(self._waiting_counts) == _SEQUENCES:
            self._flush()

    def _flush(self) -> None:
        rows = np.array(self._waiting_rows, np.int64).reshape(-1, 3)
        self._writer.add(np.array(self._waiting_counts, np.int64), rows)
        self._counts["tokens"] += int(rows[:, 2].sum())
        self._waiting_counts, self._waiting_rows = [], []


def _tokens(parts: Sequence[Part]) -> int:
    return sum(part.stop - part.start for part in parts)
