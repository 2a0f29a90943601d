"""Which text follows which: N texts, M rounds, and the chains that come of them (pure).

There are ceil(N / M) slots.  Round r takes the r-th block of texts, and slot i of round r continues
the chain of slot i of round r - 1 (paper, section 2.2), so every text is synthesized once.  When M
does not divide N, the last rounds have fewer texts, or none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import xxhash

from data_prep.records import AugmentedText, Chain


def round_blocks(texts: int, rounds: int) -> list[list[int]]:
    """Indices of the texts of each round; the place within a block is the slot.  No block is empty.

    >>> round_blocks(5, 2)
    [[0, 1, 2], [3, 4]]
    """
    slots = -(-texts // rounds)
    return [list(range(start, min(start + slots, texts))) for start in range(0, texts, max(slots, 1))]


def ancestors(index: int, slots: int, done: Mapping[int, AugmentedText]) -> list[AugmentedText]:
    """The texts before text `index` in its slot that have pairs, oldest first."""
    earlier = range(index % slots, index, slots)
    return [done[i] for i in earlier if i in done and done[i].pairs]


def build_chains(texts: Sequence[AugmentedText], rounds: int) -> tuple[list[Chain], list[AugmentedText]]:
    """The chains of texts with pairs, and the texts without (which are in no chain).

    `texts` stand in the order they were numbered in for `round_blocks`.
    """
    slots = -(-len(texts) // rounds)
    chains = []
    for slot in range(slots):
        members = tuple(text for text in texts[slot::slots] if text.pairs)
        if members:
            chains.append(Chain(chain_id(members), members))
    return chains, [text for text in texts if not text.pairs]


def chain_id(texts: Sequence[AugmentedText]) -> str:
    """A stable name: a hash of which texts it holds, in order."""
    names = "\x1f".join(f"{text.source}\x1e{text.document_id}\x1e{text.start}\x1e{text.end}" for text in texts)
    return f"chain-{xxhash.xxh3_64_hexdigest(names.encode())}"
