"""Splitting: pieces fit, give the text back, and end where sentences end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.splitting import split


def words(text: str) -> int:
    return len(text.split())


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab. \n!?é。\U0001f600Z\t"), max_size=300) | st.text(), st.integers(1, 40))
def test_pieces_fit_and_give_the_text_back(text: str, limit: int):
    pieces = split(text, limit, len)
    assert "".join(text[start:end] for start, end in pieces) == text
    assert all(0 < end - start <= limit for start, end in pieces)
    assert [start for start, _ in pieces[1:]] == [end for _, end in pieces[:-1]]


def test_cuts_stand_at_sentence_ends():
    text = "Dr. Smith went to the U.S. on Jan. 5. He was tired. See Fig. 3 for it. The end came."
    pieces = [text[start:end] for start, end in split(text, 10, words)]
    assert pieces == ["Dr. Smith went to the U.S. on Jan. 5. ", "He was tired. See Fig. 3 for it. ", "The end came."]


def test_a_long_sentence_is_cut_between_words_and_a_long_word_between_characters():
    pieces = [("one two three " + "x" * 12)[a:b] for a, b in split("one two three " + "x" * 12, 8, len)]
    assert pieces == ["one two ", "three ", "xxxxxxxx", "xxxx"]


def test_counts_are_few_for_a_long_text():
    calls = []

    def count(piece: str) -> int:
        calls.append(len(piece))
        return len(piece) // 4

    text = "This is one of very many sentences here. " * 20000
    pieces = split(text, 500, count)
    assert len(calls) < 20 * len(pieces)
    assert sum(calls) < 20 * len(text)


def test_where_tokens_end_saves_most_of_the_counts():
    """Of a text as uneven as this, a little more than each piece (what came before says how much), and each piece."""
    looked_at: dict[str, int] = {}

    def token_ends(text: str) -> list[int]:
        looked_at[text] = len(text)
        return [end for end in range(1, len(text) + 1) if text[end - 1].isdigit() or end % 8 == 0]

    def count(text: str) -> int:
        return len(token_ends(text))

    plain, dense = "This is one of very many sentences here. ", "It has 1234567890 1234567890 1234567890 in it. "
    text = (plain * 12 + dense * 6) * 6
    pieces = split(text, 300, count)
    guessed = sum(looked_at.values())
    looked_at.clear()
    assert split(text, 300, count, token_ends=token_ends) == pieces and len(pieces) > 3
    assert sum(looked_at.values()) < 3 * len(text) and guessed > 5 * len(text)


def test_a_limit_that_nothing_fits_is_an_error_and_no_text_no_pieces():
    assert split("", 5, len) == []
    with pytest.raises(ValueError, match="not even one character"):
        split("abc", 0, len)
