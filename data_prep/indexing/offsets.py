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
        lengths = self._spelling.lengths[tokens.values]
        ends = np.cumsum(lengths)
        bounds = np.concatenate(([0], ends))[tokens.bounds]
        spelled = np.diff(bounds)
        prefix = spelled - np.array([len(blob) for blob in blobs], np.int64)
        starts = ends - lengths - np.repeat(bounds[:-1] + prefix, tokens.lengths())
        np.maximum(starts, 0, out=starts)
        for index in np.flatnonzero(~self._spelled_out(tokens, prefix, texts)).tolist():
            starts[tokens.bounds[index] : tokens.bounds[index + 1]] = self._slow(texts[index], blobs[index])
        return Ragged(starts, tokens.bounds)

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
