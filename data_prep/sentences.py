"""Where sentences, clauses, words and characters of a text may be cut, by its language.

Sentence ends of languages with spaces come from sentencex (Wikimedia; rules and abbreviations of some 300 languages
inside the package, nothing is downloaded).  Of hand-written hard German it splits 27 of 28 right with 3 false ends,
where Punkt's German model with its list of abbreviations has 7 and pysbd 9; on English Wikipedia it and nupunkt differ
at 2.9 % of the ends, each wrong about as often; and it is eight times faster than nupunkt.  Scripts without spaces end
their sentences with marks that mean nothing else, so a rule is enough there.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from regex import Pattern

WITHOUT_SPACES: Final = frozenset({"zh", "ja", "yue", "wuu", "th", "lo", "my", "km", "bo"})
"""Languages written without spaces between words."""

_CLOSING = "[\"'”’»」』）)】》〉］\\]]*\\s*"  # noqa: RUF001
_SENTENCE = re.compile(f"[。！？!?…；｡។៕။༎]+{_CLOSING}|\n\\s*")  # noqa: RUF001
_CLAUSE = re.compile(f"[、，,：:၊]+{_CLOSING}|\\s+")  # noqa: RUF001
_WORD = re.compile(r"\s+")
_SPACE = re.compile(r"\s*")
_JOINER = "\u200d"
# Characters that sentencex looks at together: on long runs of Chinese its time grows with the square.
_CHUNK = 1 << 13
# What stands behind an end decides whether it is one ("am 3. Oktober"), so there must be some text behind it.
_LOOK_AHEAD = 128


def sentence_ends(text: str, language: str) -> array[int]:
    """Offsets behind the sentences of `text`, and behind the space after them, rising; the last is its length."""
    if language in WITHOUT_SPACES:
        return _ends_of(_SENTENCE, text)
    return _kept(text, _by_library(text, language))


def clause_ends(text: str, language: str) -> array[int]:
    """Offsets behind the clauses of a text without spaces, as of sentences; of another text, behind its words."""
    return _ends_of(_CLAUSE if language in WITHOUT_SPACES else _WORD, text)


def character_end(text: str, start: int, most: int) -> int:
    """The last end of a character as a reader sees it (a grapheme cluster) in (start, most], else `start`.

    `start` is such an end itself, or 0.
    """
    if text.isascii() and text[most - 1 : most + 1] != "\r\n":
        return most
    reached = start
    for match in _graphemes().finditer(text, start):
        if match.end() > most:
            break
        reached = match.end()
    return reached


def _by_library(text: str, language: str) -> Iterator[int]:
    """The ends that sentencex finds, chunk by chunk; each chunk begins at an end, if there is one."""
    from sentencex import get_sentence_boundaries

    start = 0
    while start < len(text):
        chunk = text[start : start + _CHUNK]
        is_last = start + _CHUNK >= len(text)
        known = len(chunk) if is_last else len(chunk) - _LOOK_AHEAD
        ends = [boundary["end_index"] for boundary in get_sentence_boundaries(language, chunk)]
        ends = [end for end in ends if end <= known]
        yield from (_SPACE.match(text, start + end).end() for end in ends)  # type: ignore[union-attr]
        start += known if is_last or not ends else ends[-1]


def _ends_of(pattern: re.Pattern[str], text: str) -> array[int]:
    return _kept(text, (match.end() for match in pattern.finditer(text)))


def _kept(text: str, ends: Iterator[int]) -> array[int]:
    """The ends that rise and part no character from what joins it, and the text's own."""
    kept = array("q")
    last = 0
    for end in ends:
        if last < end < len(text) and not _parts_a_character(text, end):
            kept.append(end)
            last = end
    kept.append(len(text))
    return kept


def _parts_a_character(text: str, end: int) -> bool:
    """Whether a mark, a joiner or the like ties the characters on both sides of `end` together."""
    if text[end] < "\u0300" and text[end - 1] < "\u0300":
        return text[end - 1 : end + 1] == "\r\n"
    return text[end - 1] == _JOINER or _graphemes().match(text, end - 1, end + 1).end() > end


@cache
def _graphemes() -> Pattern[str]:
    import regex

    return regex.compile(r"\X")
