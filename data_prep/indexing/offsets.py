"""Where in its text each token starts, in bytes of UTF-8.

Most tokenizers spell a text out: the bytes of its tokens, one after the other, are the text.  Then a table of the
tokens' lengths and one sum are enough.  A text that is not spelled out (a normalizer changed it) gets the offsets of
the tokenizers library, token by token.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from data_prep.indexing.ragged import Ragged
from data_prep.indexing.tokenizer import TextTokenizer


class TokenOffsets:
    """The first byte of each token of texts that a tokenizer encoded."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer, self._spelling = tokenizer, tokenizer.spelling

    def starts(self, tokens: Ragged, texts: Sequence[str], blobs: Sequence[bytes]) -> Ragged:
        """int64, shaped as `tokens`: the first byte of each token within its text."""
        if self._spelling.lengths is None:
            starts = [self._slow(text, blob) for text, blob in zip(texts, blobs, strict=True)]
            return Ragged(np.concatenate(starts) if starts else np.empty(0, np.int64), tokens.bounds)
        joint, first, prefix = self._joint_starts(tokens, blobs)
        starts = joint - np.repeat(first, tokens.lengths())
        np.maximum(starts, 0, out=starts)
        for index in np.flatnonzero(~self._spelled_out(tokens, prefix, texts)).tolist():
            starts[tokens.bounds[index] : tokens.bounds[index + 1]] = self._slow(texts[index], blobs[index])
        return Ragged(starts, tokens.bounds)

    def before(
        self, tokens: Ragged, texts: Sequence[str], blobs: Sequence[bytes], text_of: np.ndarray, places: np.ndarray
    ) -> np.ndarray:
        """How many tokens of text `text_of` start before byte `places` > 0 of it; int64, shaped as these two."""
        if self._spelling.lengths is None:
            return starts_before(self.starts(tokens, texts, blobs), text_of, places)
        joint, first, prefix = self._joint_starts(tokens, blobs)
        found = np.searchsorted(joint, first[text_of] + places) - tokens.bounds[text_of]
        for index in np.flatnonzero(~self._spelled_out(tokens, prefix, texts)).tolist():
            here = text_of == index
            found[here] = np.searchsorted(self._slow(texts[index], blobs[index]), places[here])
        return found

    def _joint_starts(self, tokens: Ragged, blobs: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the tokens' bytes, all joined: where each token starts, where each text does, and what stands before it.

        That is a blank of the tokenizer's own, or nothing, where the text is spelled out.
        """
        assert self._spelling.lengths is not None
        stops = np.zeros(len(tokens.values) + 1, np.int64)
        np.take(self._spelling.lengths, tokens.values, out=stops[1:], mode="clip")  # "raise" would copy
        np.cumsum(stops[1:], out=stops[1:])
        first = stops[tokens.bounds[1:]] - np.array([len(blob) for blob in blobs], np.int64)
        return stops[:-1], first, first - stops[tokens.bounds[:-1]]

    def _spelled_out(self, tokens: Ragged, prefix: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Which texts are the bytes of their tokens, at most a blank before them; [texts] bool."""
        found = (prefix == 0) | ((prefix == 1) & self._begins_blank(tokens))
        if self._spelling.nfc:
            found &= np.array([text.isascii() or unicodedata.is_normalized("NFC", text) for text in texts], bool)
        return found

    def _begins_blank(self, tokens: Ragged) -> np.ndarray:
        """Which texts start with a token that starts with a blank of SentencePiece's."""
        first = np.minimum(tokens.bounds[:-1], max(len(tokens.values) - 1, 0))
        return self._spelling.blank[tokens.values[first]] if len(tokens.values) else np.zeros(len(first), bool)

    def _slow(self, text: str, blob: bytes) -> np.ndarray:
        encoding = self._tokenizer.encoder.encode(text, add_special_tokens=False)
        characters = np.array([start for start, _ in encoding.offsets], np.int64)
        if len(blob) == len(text):
            return characters
        starts = np.flatnonzero((np.frombuffer(blob, np.uint8) & 0xC0) != 0x80)
        return np.append(starts, len(blob))[characters]


def starts_before(starts: Ragged, text_of: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How many of the `starts` of text `text_of` lie before `places`, in their unit; int64, shaped as these two."""
    # One search over all texts: each is moved beyond the end of the one before it.
    reach = int(max(places.max(initial=0), starts.values.max(initial=0))) + 1
    moved = starts.values + np.repeat(np.arange(len(starts.bounds) - 1) * reach, starts.lengths())
    return np.searchsorted(moved, places + text_of * reach) - starts.bounds[text_of]
