"""Which text follows which: N texts, M rounds, and the chains that come of them (pure).

There are ceil(N / M) slots.  Round r takes the r-th block of texts, and slot i of round r continues
the chain of slot i of round r - 1 (paper, section 2.2), so every text is synthesized once.  When M
does not divide N, the last rounds have fewer texts, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import xxhash

from data_prep.records import AugmentedText, Chain


def slots(texts: int, rounds: int) -> list[list[int]]:
    """The texts of each slot, by their places, in the order of the rounds.  No slot is empty.

    >>> slots(5, 2)
    [[0, 3], [1, 4], [2]]
    """
    count = -(-texts // rounds)
    return [list(range(slot, texts, count)) for slot in range(count)]


def plan_chains(
    texts: Sequence[AugmentedText], rounds: int, *, by_source: bool = False, samples: int = 1
) -> list[tuple[AugmentedText, ...]]:
    """The texts of each chain to be, in order, every text once a sample; no chain has texts of several samples.

    With `by_source` the texts of a source are numbered by themselves, sources in the order in which they first come.
    """
    groups: dict[tuple[str, int], list[AugmentedText]] = {}
    for text in texts:
        groups.setdefault((text.source if by_source else "", text.sample), []).append(text)
    return [
        tuple(replace(group[place], sample=sample) if sample else group[place] for place in slot)
        for sample in range(samples)
        for group in groups.values()
        for slot in slots(len(group), rounds)
    ]


def chain_of(texts: Sequence[AugmentedText]) -> Chain | None:
    """The chain of those texts that have pairs; None if none has."""
    members = tuple(text for text in texts if text.pairs)
    return Chain(chain_id(members), members) if members else None


def chain_id(texts: Sequence[AugmentedText]) -> str:
    """A stable name: a hash of which texts it holds, in order."""
    names = "\x1f".join(f"{text.source}\x1e{text.document_id}\x1e{text.start}\x1e{text.end}" for text in texts)
    sample = f"\x1d{texts[0].sample}" if texts[0].sample else ""
    return f"chain-{xxhash.xxh3_64_hexdigest((names + sample).encode())}"
