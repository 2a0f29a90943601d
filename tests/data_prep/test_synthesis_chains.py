"""Chains: every text used once, for every number of texts and rounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.records import AugmentedText, Pair
from data_prep.synthesis.chains import ancestors, build_chains, round_blocks

PAIRS = (Pair("q", "a"),)


def texts(paired: list[bool]) -> list[AugmentedText]:
    return [AugmentedText(str(i), f"text {i}", PAIRS if has else ()) for i, has in enumerate(paired)]


@pytest.mark.parametrize("rounds", range(1, 6))
@pytest.mark.parametrize("count", range(41))
def test_every_text_is_in_one_round_and_one_chain(count: int, rounds: int):
    blocks = round_blocks(count, rounds)
    assert [index for block in blocks for index in block] == list(range(count))
    assert all(blocks) and len(blocks) <= rounds
    chains, leftover = build_chains(texts([True] * count), rounds)
    assert not leftover and all(1 <= len(chain.texts) <= rounds for chain in chains)
    assert sorted(int(text.document_id) for chain in chains for text in chain.texts) == list(range(count))
    assert len({chain.id for chain in chains}) == len(chains)


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 5))
def test_a_text_without_pairs_is_left_over_and_its_chain_goes_on_without_it(paired: list[bool], rounds: int):
    every = texts(paired)
    chains, leftover = build_chains(every, rounds)
    used = [text for chain in chains for text in chain.texts]
    assert all(text.pairs for text in used) and all(chain.texts for chain in chains)
    assert sorted(used + leftover, key=lambda text: int(text.document_id)) == every


def test_ancestors_are_the_slots_earlier_texts_with_pairs():
    every = texts([True, True, False, True, True, True])
    done = dict(enumerate(every[:4]))
    assert [text.document_id for text in ancestors(4, 2, done)] == ["0"]
    assert [text.document_id for text in ancestors(5, 2, done)] == ["1", "3"]
    assert [text.document_id for chain in build_chains(every, 3)[0] for text in chain.texts] == list("04135")
