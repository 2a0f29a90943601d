"""Chains: every text used once, for every number of texts and rounds."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.records import AugmentedText, Pair
from data_prep.synthesis.chains import chain_of, plan_chains, slots

PAIRS = (Pair("q", "a"),)


def texts(sources: str) -> list[AugmentedText]:
    return [AugmentedText(str(i), f"text {i}", source=source) for i, source in enumerate(sources)]


@pytest.mark.parametrize("rounds", range(1, 6))
@pytest.mark.parametrize("count", range(41))
def test_every_text_is_in_one_round_of_one_slot(count: int, rounds: int):
    found = slots(count, rounds)
    blocks = [[slot[place] for slot in found if place < len(slot)] for place in range(rounds)]
    assert [index for block in blocks for index in block] == list(range(count))  # round r has the r-th block
    assert all(1 <= len(slot) <= rounds for slot in found) and len(found) == -(-count // rounds)


@given(st.text("abc", max_size=40), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_every_text_is_in_one_chain_a_sample(sources: str, rounds: int, samples: int, by_source: bool):
    every = texts(sources)
    chains = plan_chains(every, rounds, by_source=by_source, samples=samples)
    used = sorted((text.sample, int(text.document_id)) for chain in chains for text in chain)
    assert used == [(sample, index) for sample in range(samples) for index in range(len(every))]
    assert all(1 <= len(chain) <= rounds and len({text.sample for text in chain}) == 1 for chain in chains)
    assert not by_source or all(len({text.source for text in chain}) == 1 for chain in chains)
    whole = [chain_of([replace(text, pairs=PAIRS) for text in chain]) for chain in chains]
    assert len({chain.id for chain in whole if chain is not None}) == len(chains)


def test_pairing_by_source_numbers_the_texts_of_each_source():
    chains = plan_chains(texts("abaabb"), 2, by_source=True)
    assert [[text.document_id for text in chain] for chain in chains] == [["0", "3"], ["2"], ["1", "5"], ["4"]]
    assert [[text.document_id for text in chain] for chain in plan_chains(texts("abaabb"), 2)] == [
        [*"03"],
        [*"14"],
        [*"25"],
    ]


def test_a_text_without_pairs_is_in_no_chain():
    every = [replace(text, pairs=PAIRS if text.document_id in "02" else ()) for text in texts("aaa")]
    chain = chain_of(every)
    assert chain is not None and [text.document_id for text in chain.texts] == ["0", "2"]
    assert chain_of(every[1:2]) is None and chain_of([]) is None
