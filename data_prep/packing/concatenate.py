"""Policy `concatenate`: Megatron's.  Documents back to back as one stream of T tokens, cut anywhere.

Sequence k is tokens [k*S, k*S + S] of the stream, S inputs and one label more, so that each sequence starts with the
token that was the last label of the one before.  Unlike Megatron the last, shorter sequence is kept: each token but
the very first is a label exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


def concatenate(
    documents: Iterable[tuple[np.ndarray, np.ndarray]], seq_length: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Packs documents that come some at a time: their numbers, and their lengths [tokens].

    Yields the number of pieces of some more sequences (int64 [n]), and the pieces (int64 [p, 3]: document, offset,
    length).  Memory is that of one part of the input.
    """
    begun = 0  # the next sequence
    first = 0  # first token of the documents that are waiting
    waiting, lengths = np.empty(0, np.int64), np.empty(0, np.int64)
    for more, more_lengths in documents:
        there = more_lengths > 0
        waiting, lengths = np.concatenate((waiting, more[there])), np.concatenate((lengths, more_lengths[there]))
        ends = first + np.cumsum(lengths)
        end = int(ends[-1]) if len(ends) else first
        whole = max(begun, (end - 1) // seq_length)  # sequences that have all of their seq_length + 1 tokens
        if whole > begun:
            yield _pieces(np.arange(begun, whole) * seq_length, seq_length + 1, waiting, lengths, ends)
            begun = whole
            done = int(np.searchsorted(ends, begun * seq_length, side="right"))
            first = int(ends[done - 1]) if done else first
            waiting, lengths = waiting[done:], lengths[done:]
    ends = first + np.cumsum(lengths)
    if len(ends) and ends[-1] - begun * seq_length > 1:
        yield _pieces(np.array([begun * seq_length]), int(ends[-1]) - begun * seq_length, waiting, lengths, ends)


def _pieces(
    begin: np.ndarray, tokens: int, documents: np.ndarray, lengths: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The pieces of the sequences that begin at token `begin` and have `tokens` each; `documents` end at `ends`."""
    first = np.searchsorted(ends, begin, side="right")
    last = np.searchsorted(ends, begin + tokens - 1, side="right")
    counts = last - first + 1
    # One row a piece: its sequence, and its place among the documents.
    sequence = np.repeat(np.arange(len(begin)), counts)
    place = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts) + first[sequence]
    document_start = ends[place] - lengths[place]
    start = np.maximum(begin[sequence], document_start)
    stop = np.minimum(begin[sequence] + tokens, ends[place])
    return counts, np.stack((documents[place], start - document_start, stop - start), axis=1)
