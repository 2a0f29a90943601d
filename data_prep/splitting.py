"""Long texts cut at sentence ends into pieces that fit a number of tokens.

A sentence that does not fit by itself is cut between clauses (Chinese and other scripts without spaces) or words, and
a word that does not fit between characters as a reader sees them, never inside one that fits.

Counting is what costs, so it is guessed where to cut, and the piece is counted to verify it: two counts a piece, where
a guess is as good as it is for prose.  Who knows the tokenizer may say where tokens end: then a little more than a
piece is looked at, and what it has tells where to cut.  Else the tokens a character of what was counted last do.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from data_prep.language import language_of
from data_prep.sentences import character_end, clause_ends, sentence_ends

Count = Callable[[str], int]
TokenEnds = Callable[[str], Sequence[int] | None]

# Above what should fit, a text is still counted as a whole before it is cut: the guess may be wrong.
_NEARLY = 1.1
# Farther than this many pieces by the guess, a part is counted before the whole.
_FAR = 2
# Tokens that two neighbours may have less together than apart.
_MERGED = 2
# Guesses by proportion before the rest is halved: they close in at once on prose, slowly on what is very uneven.
_GUESSES = 6


def split(
    text: str,
    limit: int,
    count: Count,
    language: str | None = None,
    *,
    most_tokens: Count | None = None,
    token_ends: TokenEnds | None = None,
) -> list[tuple[int, int]]:
    """Offsets [start, end) of the pieces of `text`; together, in order, they are the text exactly.

    Args:
        limit: most tokens of a piece, as `count` counts them.
        count: tokens of a string, with what stands around it; called about twice a piece.
        language: code of the text's language; None asks `language_of`, when the text must be cut.
        most_tokens: what `count` never exceeds, at hardly any cost, so that a text or a rest that it shows to fit is
            not counted.  Who knows the tokenizer says it: of a byte-level BPE without normalizer the bytes of UTF-8,
            as a token is at least one, and what `count` adds; a SentencePiece model may give a byte more than one.
        token_ends: the characters behind which the tokens of a text end, rising, or None where it cannot tell; a
            guess to be verified, so that it may be off where texts are cut out of one another.

    Raises:
        ValueError: not even one character fits.
    """
    return list(pieces(text, limit, count, language, most_tokens=most_tokens, token_ends=token_ends))


def pieces(
    text: str,
    limit: int,
    count: Count,
    language: str | None = None,
    *,
    most_tokens: Count | None = None,
    token_ends: TokenEnds | None = None,
) -> Iterator[tuple[int, int]]:
    """As `split`, a piece as soon as its end is known: a long text takes seconds."""
    if not text:
        return
    if most_tokens is not None and most_tokens(text) <= limit:
        yield 0, len(text)
        return
    density = _Density(text, limit, count, token_ends)
    if density.may_fit(len(text)) and density.tokens(0, len(text)) <= limit:
        yield 0, len(text)
        return
    splitter = _Splitter(text, density, language or language_of(text), most_tokens)
    start = 0
    while start < len(text):
        end = splitter.end_of_piece(start)
        yield start, end
        start = end


class _Density:
    """Counts parts of a text, and knows how many tokens what follows a place has, or about how many."""

    def __init__(self, text: str, limit: int, count: Count, token_ends: TokenEnds | None) -> None:
        self._text, self.limit, self._count, self._token_ends = text, limit, count, token_ends
        self._around = count("")
        self._a_character = 1.0
        self._ahead = _NOTHING_AHEAD
        # As many characters as a piece has tokens: a quarter of a piece of prose, enough to guess the rest by.
        self.tokens(0, max(min(limit, len(text)), 1))

    def tokens(self, start: int, end: int) -> int:
        """Tokens of a part of the text."""
        tokens = self._count(self._text[start:end])
        self._a_character = max(tokens - self._around, 1) / (end - start)
        return tokens

    def look(self, start: int) -> None:
        """Looks where the tokens end of a little more than fits from `start` on, if that can be known."""
        self._ahead = _NOTHING_AHEAD
        if self._token_ends is None:
            return
        end = min(start + int(_NEARLY * self._by_density()) + 1, len(self._text))
        ends = self._token_ends(self._text[start:end])
        if ends is not None and len(ends):
            self._ahead = _Ahead(start, end, ends)
            self._a_character = len(ends) / (end - start)

    def added(self, start: int, end: int) -> int:
        """About what a part of the text adds to the tokens of the one before it; of a long part, at least that."""
        if self._ahead.start <= start < self._ahead.end:
            return self._ahead.tokens(start, end)
        return self._count(self._text[start:end]) - self._around

    def reach(self, start: int) -> int:
        """Characters that should fit, from `start` on."""
        room = self.limit - self._around
        if self._ahead.start == start and len(self._ahead.token_ends) > room > 0:
            return self._ahead.token_ends[room - 1]
        return self._by_density()

    def may_fit(self, characters: int) -> bool:
        """Whether so many characters fit, or nearly, if the guess is right."""
        return characters <= _NEARLY * self._by_density()

    def should_fit(self, characters: int) -> bool:
        """Whether so many characters fit, with something to spare, if the guess is right."""
        return _NEARLY * characters <= self._by_density()

    def _by_density(self) -> int:
        return int((self.limit - self._around) / self._a_character)


@dataclass(frozen=True, slots=True)
class _Ahead:
    """Where the tokens end in characters [start, end) of a text, counted from `start`."""

    start: int
    end: int
    token_ends: Sequence[int]

    def tokens(self, start: int, end: int) -> int:
        """Those that end in a part of it."""
        first, last = (bisect_right(self.token_ends, place - self.start) for place in (start, end))
        return last - first


_NOTHING_AHEAD = _Ahead(-1, -1, ())


class _Splitter:
    """The ends of one text's pieces."""

    def __init__(self, text: str, density: _Density, language: str, most_tokens: Count | None) -> None:
        self._text, self._density, self._language = text, density, language
        self._most_tokens = most_tokens
        self._sentences = sentence_ends(text, language)
        self._clauses: Sequence[int] = ()

    def end_of_piece(self, start: int) -> int:
        """The farthest end that fits, of sentences if one does, else of clauses or words, else of characters."""
        if self._rest_fits(start):
            return len(self._text)
        self._density.look(start)
        found, beyond = self._farthest(start, self._sentences, len(self._text))
        if found is None:
            self._clauses = self._clauses or clause_ends(self._text, self._language)
            found, beyond = self._farthest(start, self._clauses, beyond)
        return self._character_end(start, beyond) if found is None else found

    def _rest_fits(self, start: int) -> bool:
        """Asked near the end only: of a long rest the bound, cheap as it is, would be dear at every piece."""
        rest, limit = len(self._text) - start, self._density.limit
        if self._most_tokens is not None and rest <= limit and self._most_tokens(self._text[start:]) <= limit:
            return True
        return self._density.should_fit(rest) and self._density.tokens(start, len(self._text)) <= limit

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
            far = start + _FAR * max(self._density.reach(start), 1)
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
        return max(good, min(bisect_right(ends, start + self._density.reach(start)) - 1, bad - 1))

    def _is_farthest(self, tokens: int, end: int, following: int) -> bool:
        """Whether a piece of that many tokens, up to `end`, would not fit any more with what follows it."""
        return tokens + self._density.added(end, following) > self._density.limit + _MERGED
