"""Which documents have their pairs before their texts, where the spans alone do not tell.

A text may have no pairs (`ipt data check` removes them), so that a document may begin and end with a text: then its
pairs stand behind the text they are about, or before it (inversion).  The lineage tells: `checks` of an origin has one
string a pair of that text, and pairs are numbered over the document, so that the first pair's text is known; in a
document all pairs stand on one side of their texts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.indexing.spans import CLASSES, Runs, SpansReader

_TEXT, _QUESTION, _ANSWER = (CLASSES.index(name) for name in ("text", "question", "answer"))


def _none() -> np.ndarray:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class PairOrder:
    """Of the documents that begin and end with a text: those with their pairs first, and those that do not tell.

    Both int64, rising.  Without a lineage (`known` is false) none of them tells.
    """

    pairs_first: np.ndarray = field(default_factory=_none)
    untold: np.ndarray = field(default_factory=_none)
    known: bool = True

    def has_pairs_first(self, document: int) -> bool | None:
        """Whether the pairs of such a document stand before their texts; None where that is not known."""
        if not self.known or _within(document, self.untold):
            return None
        return _within(document, self.pairs_first)


def pair_order(prefix: Path, spans: SpansReader, has_lineage: bool) -> PairOrder:
    """Reads the spans of a dataset, and the lineage of the documents that they do not tell of.

    Errors: a UserError naming a file that is damaged.
    """
    if not has_lineage:
        return PairOrder(known=False)
    # Imported here: a trainer takes tables from this package without pyarrow.
    from data_prep.indexing.layout import lineage_path
    from data_prep.indexing.lineage import open_lineage, read_pair_counts

    path = lineage_path(prefix)
    pairs_first, untold, start = [_none()], [_none()], 0
    with open_lineage(path) as file:
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            doubtful = _begin_and_end_with_text(spans.runs_of(start, stop))
            if len(doubtful.document):
                about = _texts_of_first_pairs(doubtful, *read_pair_counts(file, group, path))
                pairs_first.append(start + doubtful.document[about > doubtful.text])
                untold.append(start + doubtful.document[about < doubtful.text])
            start = stop
            spans.forget_pages()
    return PairOrder(np.concatenate(pairs_first), np.concatenate(untold))


@dataclass(frozen=True, slots=True)
class _Doubtful:
    """Documents that begin and end with a text and have pairs between; all int64 [documents].

    `text` is the origin of the last text before the first pair, `pair` the number of that pair, `pairs` the highest
    number of a pair and one.
    """

    document: np.ndarray
    text: np.ndarray
    pair: np.ndarray
    pairs: np.ndarray


def _begin_and_end_with_text(runs: Runs) -> _Doubtful:
    is_pair = (runs.classes == _QUESTION) | (runs.classes == _ANSWER)
    content = np.flatnonzero(is_pair | (runs.classes == _TEXT))
    documents = np.repeat(np.arange(len(runs.counts)), runs.counts)[content]
    of, is_pair = runs.of[content].astype(np.int64), is_pair[content]
    pairs = np.flatnonzero(is_pair)
    if not len(pairs):
        return _Doubtful(_none(), _none(), _none(), _none())
    begins = np.flatnonzero(np.diff(documents, prepend=-1))
    with_text = np.zeros(len(runs.counts), bool)
    with_text[documents[begins]] = ~is_pair[begins] & ~is_pair[np.append(begins[1:], len(documents)) - 1]
    firsts = np.flatnonzero(np.diff(documents[pairs], prepend=-1))
    most = np.maximum.reduceat(of[pairs], firsts) + 1
    first = pairs[firsts]
    kept = with_text[documents[first]]
    first = first[kept]
    return _Doubtful(documents[first], of[first - 1], of[first], most[kept])


def _texts_of_first_pairs(doubtful: _Doubtful, origins: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The origin that the first pair is about, int64 [documents]; -1 where origins do not account for all pairs.

    Args:
        origins: of each document of the row group, int64.
        pairs: of each of these origins, int64.
    """
    found = np.full(len(doubtful.document), -1, np.int64)
    stops, before = np.cumsum(origins), np.append(0, np.cumsum(pairs))
    starts = stops - origins
    start, stop = starts[doubtful.document], stops[doubtful.document]
    told = before[stop] - before[start] >= doubtful.pairs
    # Counted over the row group, the origin that a pair is about is the last one that begins at or before it.
    place = np.searchsorted(before, before[start] + doubtful.pair, side="right") - 1 - start
    found[told] = place[told]
    return found


def _within(number: int, rising: np.ndarray) -> bool:
    place = int(np.searchsorted(rising, number))
    return place < len(rising) and int(rising[place]) == number
