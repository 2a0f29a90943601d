"""Token ids -> text, with the character at which each token starts: for people who look into a dataset."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from data_prep.errors import UserError
from data_prep.indexing.layout import bin_path
from data_prep.indexing.offsets import TokenOffsets
from data_prep.indexing.ragged import Ragged
from data_prep.indexing.tokenizer import check_tokenizer, load_tokenizer
from data_prep.manifest import Manifest
from data_prep.settings import IndexSettings


class DecodedDocument:
    """The text of a document, without its control tokens; token i starts at character `starts[i]` [tokens + 1].

    `exact`: it is the text that was encoded, character by character.
    """

    def __init__(self, text: str, starts: np.ndarray, names: dict[int, str], exact: bool) -> None:
        self.text, self.starts, self._names, self.exact = text, starts, names, exact

    def part(self, start: int, end: int) -> str:
        """The text of tokens [start, end); a control token in it is its name."""
        named = [place for place in self._names if start <= place < end]
        pieces, place = [], start
        for control in named:
            pieces += [self.text[self.starts[place] : self.starts[control]], self._names[control]]
            place = control + 1
        return "".join(pieces) + self.text[self.starts[place] : self.starts[end]]


class Decoder:
    """Decodes the documents of one dataset by the tokenizer it was written with."""

    def __init__(self, directory: Path, manifest: Manifest, prefix: Path) -> None:
        """Errors: a UserError if `directory` holds no tokenizer, or another one."""
        identity = manifest.tokenizer
        check_tokenizer(directory, identity, prefix)
        eod = manifest.settings.get("eod_token")
        settings = IndexSettings(
            prepend_bos=identity.prepend_bos,
            append_eod=identity.append_eod,
            eod_token=eod if isinstance(eod, str) else None,
        )
        self._tokenizer = load_tokenizer(directory, settings)
        self._offsets = TokenOffsets(self._tokenizer)
        self._names = {token: name for name, token in self._tokenizer.control.items()}
        self._prefix, self._lossless = prefix, not manifest.lossy_documents

    def decode(self, tokens: np.ndarray, control: np.ndarray) -> DecodedDocument:
        """The text of a document; `control` [tokens] says which tokens are control tokens.

        Errors: a UserError for an id outside of the vocabulary.
        """
        wrong = np.flatnonzero((tokens < 0) | (tokens >= self._tokenizer.identity.vocab_size))
        if wrong.size:
            problem = f"token id {tokens[wrong[0]]} is outside of the tokenizer's vocabulary"
            raise UserError(bin_path(self._prefix), problem, "see what `ipt data verify` says")
        starts = np.zeros(len(tokens) + 1, np.int64)
        pieces, length = [], 0
        # Between control tokens texts were encoded each by itself, and are decoded so.
        edges = np.flatnonzero(np.diff(control.astype(np.int8), prepend=-1, append=-1))
        for start, end in pairwise(edges.tolist()):
            starts[start:end] = length
            if not control[start]:
                text, places = self._piece(tokens[start:end].astype(np.uint32))
                starts[start:end] += places
                pieces.append(text)
                length += len(text)
        starts[-1] = length
        names = {place: self._name(int(tokens[place])) for place in np.flatnonzero(control).tolist()}
        spelling = self._tokenizer.spelling
        exact = spelling.lengths is not None and not spelling.nfc and self._lossless
        return DecodedDocument("".join(pieces), starts, names, exact)

    def _name(self, token: int) -> str:
        return self._names.get(token, f"<{token}>")

    def _piece(self, tokens: np.ndarray) -> tuple[str, np.ndarray]:
        """The text of some tokens, and the character in which each starts; evenly spread where that is not known."""
        text = self._tokenizer.encoder.decode(tokens.tolist(), skip_special_tokens=False)
        blob = text.encode()
        try:
            starts = self._offsets.starts(Ragged(tokens, np.array([0, len(tokens)])), [text], [blob]).values
        except ValueError:  # encoded anew, the text gives another number of tokens
            starts = np.empty(0, np.int64)
        if len(starts) != len(tokens):
            return text, np.linspace(0, len(text), len(tokens), endpoint=False).astype(np.int64)
        characters = np.cumsum((np.frombuffer(blob, np.uint8) & 0xC0) != 0x80)
        return text, np.append(characters, len(text) + 1)[np.minimum(starts, len(blob))] - 1
