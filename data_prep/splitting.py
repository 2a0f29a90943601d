"""Long texts cut at sentence ends into pieces that fit a number of tokens.

A sentence that does not fit by itself is cut between clauses (Chinese and other scripts without spaces) or words, and
a word that does not fit between characters as a reader sees them, never inside one that fits.

Counting is what costs, so it is guessed where to cut, from the tokens a character of what was counted last, and the
piece is counted to verify it: two counts a piece, where a guess is as good as it is for prose.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from data_prep.language import language_of
from data_prep.sentences import character_end, clause_ends, sentence_ends

Count = Callable[[str], int]

# Above what should fit, a text is still counted as a whole before it is cut: the guess may be wrong.
_NEARLY = 1.1
# Farther than this many pieces by the guess, a part is counted before the whole.
_FAR = 2
# Tokens that two neighbours may have less together than apart.
_MERGED = 2
# Guesses by proportion before the rest is halved: they close in at once on prose, slowly on what is very uneven.
_GUESSES = 6


def split(
    text: str, limit: int, count: Count, language: str | None = None, *, most_tokens: Count | None = None
) -> list[tuple[int, int]]:
    """Offsets [start, end) of the pieces of `text`; together, in order, they are the text exactly.

    Args:
        limit: most tokens of a piece, as `count` counts them.
        count: tokens of a string, with what stands around it; called about twice a piece.
        language: code of the text's language; None asks `language_of`, when the text must be cut.
        most_tokens: what `count` never exceeds, at hardly any cost, so that a text or a rest that it shows to fit is
            not counted.  Who knows the tokenizer says it: of a byte-level BPE without normalizer the bytes of UTF-8,
            as a token is at least one, and what `count` adds; a SentencePiece model may give a byte more than one.

    Raises:
        ValueError: not even one character fits.
    """
    return list(pieces(text, limit, count, language, most_tokens=most_tokens))


def pieces(
    text: str, limit: int, count: Count, language: str | None = None, *, most_tokens: Count | None = None
) -> Iterator[tuple[int, int]]:
    """As `split`, a piece as soon as its end is known: a long text takes seconds."""
    if not text:
        return
    if most_tokens is not None and most_tokens(text) <= limit:
        yield 0, len(text)
        return
    density = _Density(text, limit, count)
    if density.expects_to_fit(len(text)) and density.tokens(0, len(text)) <= limit:
        yield 0, len(text)
        return
    splitter = _Splitter(text, density, language or language_of(text), most_tokens)
    start = 0
    while start < len(text):
        end = splitter.end_of_piece(start)
        yield start, end
        start = end


class _Density:
    """Counts parts of a text, and knows from the last one how many tokens a character of it has."""

    def __init__(self, text: str, limit: int, count: Count) -> None:
        self._text, self.limit, self._count = text, limit, count
        self._around = count("")
        self._a_character = 1.0
        # As many characters as a piece has tokens: a quarter of a piece of prose, enough to guess the rest by.
        self.tokens(0, max(min(limit, len(text)), 1))

    def tokens(self, start: int, end: int) -> int:
        """Tokens of a part of the text."""
        tokens = self._count(self._text[start:end])
        self._a_character = max(tokens - self._around, 1) / (end - start)
        return tokens

    def added(self, start: int, end: int) -> int:
        """About what a part of the text adds to the tokens of the one before it."""
        return self._count(self._text[start:end]) - self._around

    def reach(self) -> int:
        """Characters that should fit."""
        return int((self.limit - self._around) / self._a_character)

    def expects_to_fit(self, characters: int) -> bool:
        """Whether so many characters fit, or nearly, if the guess is right."""
        return characters <= _NEARLY * self.reach()


class _Splitter:
    """The ends of one text's pieces."""

    def __init__(self, text: str, density: _Density, language: str, most_tokens: Count | None) -> None:
        self._text, self._density, self._language = text, density, language
        self._most_tokens = most_tokens
        self._sentences = sentence_ends(text, language)
        self._clauses: Sequence[int] = ()

    def end_of_piece(self, start: int) -> int:
        """The farthest end that fits, of sentences if one does, else of clauses or words, else of characters."""
        if self._rest_surely_fits(start):
            return len(self._text)
        found, beyond = self._farthest(start, self._sentences, len(self._text))
        if found is None:
            self._clauses = self._clauses or clause_ends(self._text, self._language)
            found, beyond = self._farthest(start, self._clauses, beyond)
        return self._character_end(start, beyond) if found is None else found

    def _rest_surely_fits(self, start: int) -> bool:
        """Asked near the end only: of a long rest the bound, cheap as it is, would be dear at every piece."""
        rest = len(self._text) - start
        if self._most_tokens is None or rest > self._density.limit:
            return False
        return self._most_tokens(self._text[start:]) <= self._density.limit

    def _character_end(self, start: int, beyond: int) -> int:
        """The farthest end of a character; within one that does not fit as a whole, of a part of it."""
        found, _ = self._farthest(start, range(start + 1, beyond + 1), beyond)
        if found is None:
            raise ValueError(f"not even one character fits at offset {start}")
        whole = character_end(self._text, start, found)
        is_end = start < whole and (whole == found or self._density.tokens(start, whole) <= self._density.limit)
        return whole if is_end else found

    def _farthest(self, start: int, ends: Sequence[int], most: int) -> tuple[int | None, int]:
        """(the farthest of the ends up to `most` that fits, or None; the first that does not fit, at most `most`)."""
        first, bad = bisect_right(ends, start), bisect_right(ends, most)
        good, tokens_good, guesses = first - 1, 0, 0
        while bad - good > 1:
            guess = self._guess(start, ends, good, bad) if guesses < _GUESSES else (good + bad) // 2
            if guess == good:
                if good >= first and self._is_farthest(tokens_good, ends[good], ends[good + 1]):
                    break
                guess = good + 1
            guesses += 1
            far = start + _FAR * max(self._density.reach(), 1)
            if ends[guess] > far:
                # A part is counted first, lest a very long sentence be counted once a piece.
                if self._density.tokens(start, far) > self._density.limit:
                    bad, most = bisect_right(ends, far), far
                continue
            tokens = self._density.tokens(start, ends[guess])
            if tokens <= self._density.limit:
                good, tokens_good = guess, tokens
            else:
                bad = guess
        return ends[good] if good >= first else None, min(ends[bad], most) if bad < len(ends) else most

    def _guess(self, start: int, ends: Sequence[int], good: int, bad: int) -> int:
        """The last end, in [good, bad), up to which the text should fit."""
        return max(good, min(bisect_right(ends, start + self._density.reach()) - 1, bad - 1))

    def _is_farthest(self, tokens: int, end: int, following: int) -> bool:
        """Whether a piece of that many tokens, up to `end`, would not fit any more with what follows it."""
        return tokens + self._density.added(end, following) > self._density.limit + _MERGED
