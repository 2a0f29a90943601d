"""Check 6, decontamination: nothing of given evaluation tasks in a pair, nor in the text it is about.

A field of a task (a question, an answer, a passage) with at least n units is met where n of its units in a row are:
13 words (the length GPT-3's authors took, arXiv 2005.14165, appendix C), or so many characters of a script without
spaces.  A shorter field is met where it stands as a whole, between ends of sentences or lines.  Very short ones
("Paris", "Yes") tell nothing alone and are left out, counted.  Units are compared case-folded, without punctuation.

A text that holds a field is no training data at all: its pairs go, and the text is written to a file of its own,
from which rendering knows that it is not to go on as raw text.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_prep.checks.languages import fold, is_unspaced, units
from data_prep.errors import UserError
from data_prep.readers import read_rows
from data_prep.records import AugmentedText, Pair
from data_prep.settings import CheckSettings, TaskSettings

Hashes = NDArray[np.uint64]

# Odd, so that no bit of a hash is lost when it is multiplied (the multiplier of Knuth's MMIX generator).
_BASE = 6364136223846793005
_SENTENCE_END = re.compile(r"[\n.!?;:\u3002]+")


@dataclass(frozen=True)
class TaskIndex:
    """Hashes of what evaluation tasks ask and answer; 8 bytes an n-gram and a short field.

    `grams` has sorted hashes by n, `wholes` those of short fields by their number of units.
    """

    grams: dict[int, Hashes]
    wholes: dict[int, Hashes]
    counts: dict[str, int]

    def meets(self, text: str) -> bool:
        """Whether a field of a task is in `text`."""
        found = Units(text)
        if any(_any_among(known, found.windows(n)) for n, known in self.grams.items()):
            return True
        return any(
            _any_among(known, found.windows(length)[found.is_sentence(length)]) for length, known in self.wholes.items()
        )


class Units:
    """The units of a text as hashes, and which of them begin and end a sentence or a line."""

    def __init__(self, text: str) -> None:
        pieces = [units(piece) for piece in _SENTENCE_END.split(fold(text))]
        self.pieces = [piece for piece in pieces if piece]
        found = [unit for piece in self.pieces for unit in piece]
        self.hashes: Hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, map(str.encode, found)), np.uint64, len(found))
        self.unspaced = 2 * sum(map(is_unspaced, found)) > len(found)

    def windows(self, length: int) -> Hashes:
        """A hash for each `length` units in a row: a polynomial of theirs modulo 2**64; none for a shorter text."""
        count = len(self.hashes) - length + 1
        if length < 1 or count < 1:
            return np.empty(0, np.uint64)
        total = np.zeros(count, np.uint64)
        for place in range(length):
            total = total * np.uint64(_BASE) + self.hashes[place : place + count]
        return total

    def is_sentence(self, length: int) -> NDArray[np.bool_]:
        """For each window, whether it begins where a sentence does and ends where one does."""
        starts, ends = self._edges
        count = max(0, len(self.hashes) - length + 1)
        return starts[:count] & ends[length - 1 : length - 1 + count]

    @cached_property
    def _edges(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        after = np.cumsum([len(piece) for piece in self.pieces], dtype=np.int64)
        starts, ends = (np.zeros(len(self.hashes), np.bool_) for _ in range(2))
        if len(after):
            starts[0] = True
            starts[after[:-1]] = True
            ends[after - 1] = True
        return starts, ends


class Decontamination:
    """Judges pairs and texts.  Reasons: raw_text_overlap, question_overlap, answer_overlap."""

    def __init__(self, index: TaskIndex) -> None:
        self.index = index
        # A text is asked about once for each of its pairs and once for itself.
        self._text_meets = lru_cache(maxsize=4)(index.meets)

    def __call__(self, pair: Pair, text: AugmentedText) -> str | None:
        if self._text_meets(text.text):
            return "raw_text_overlap"
        if self.index.meets(pair.question):
            return "question_overlap"
        return "answer_overlap" if self.index.meets(pair.answer) else None

    def of_text(self, text: AugmentedText) -> str | None:
        return "raw_text_overlap" if self._text_meets(text.text) else None


def judge(settings: CheckSettings, chains_path: Path) -> Decontamination:
    """Reasons: raw_text_overlap (all pairs of a text that holds a field of a task), question_overlap, answer_overlap.

    Raises:
        UserError: no task file, or one that cannot be read or has no field under the keys.
    """
    return Decontamination(index_tasks(settings))


def index_tasks(settings: TaskSettings) -> TaskIndex:
    """Reads the task files."""
    if not settings.decontaminate:
        mend = "give JSONL or Parquet files of evaluation tasks, or leave the check out"
        raise UserError("decontaminate", "the check 'decontamination' has no task file", mend)
    grams: defaultdict[int, list[Hashes]] = defaultdict(list)
    wholes: defaultdict[int, list[Hashes]] = defaultdict(list)
    counts: Counter[str] = Counter(dict.fromkeys(("tasks", "fields", "too_short"), 0))
    for path in settings.decontaminate:
        before = counts["fields"]
        for _, row in read_rows(path):
            counts["tasks"] += 1
            for field in fields_of(row, settings.decontaminate_keys):
                counts["fields"] += 1
                found = Units(field)
                n = settings.decontaminate_characters if found.unspaced else settings.decontaminate_words
                if len(found.hashes) >= n:
                    grams[n].append(found.windows(n))
                elif len(found.hashes) >= settings.decontaminate_min_units:
                    wholes[len(found.hashes)].append(found.windows(len(found.hashes)))
                else:
                    counts["too_short"] += 1
        if counts["fields"] == before:
            told = ", ".join(settings.decontaminate_keys) or "any key"
            raise UserError(path, f"no row has a string under {told}", "name the keys by decontaminate_keys")
    return TaskIndex(_ordered(grams), _ordered(wholes), dict(counts))


def _ordered(hashes: Mapping[int, list[Hashes]]) -> dict[int, Hashes]:
    return {length: np.unique(np.concatenate(each)) for length, each in sorted(hashes.items())}


def fields_of(row: dict[str, Any], keys: Sequence[str]) -> Iterator[str]:
    """The strings of a row, those inside lists and objects too; with keys, those under them only."""
    return _strings([row[key] for key in keys if key in row] if keys else row.values())


def _strings(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from _strings(value.values())
        elif isinstance(value, list):
            yield from _strings(value)


def _any_among(ordered: Hashes, values: Hashes) -> bool:
    places = np.searchsorted(ordered, values)
    places[places == len(ordered)] = 0
    return bool(len(ordered)) and bool(np.any(ordered[places] == values))
