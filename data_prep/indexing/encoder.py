"""Texts -> token ids, fast: gigatoken where it knows the tokenizer, else the tokenizers library.

gigatoken is 15 to 30 times faster and younger; so the tokenizers library stays the oracle.  `check` encodes a piece of
text with both, and a difference is an error: no shard is written with a piece that the two do not agree on.

Two limits of gigatoken 0.10, both met here: its cache has no bound (a tokenizer that has grown by RENEW_BYTES is made
anew), and it wants a token for each byte value (a missing one is lent an id above the vocabulary; a text that needs
it goes to the tokenizers library).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from data_prep.errors import UserError
from data_prep.indexing.ragged import Ragged, ragged
from data_prep.indexing.tokenizer import TextTokenizer
from data_prep.memory import give_back, resident_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# What a tokenizer is tried with: gigatoken knows a split pattern or not, and may take one for another.
PROBES = (
    "The cell divides; it's 12,345.67 times (or so) — “quoted” text.\n\n\n\tIndented  twice,   thrice.\r\n",
    "I'LL we've they'D DON'T don't 'tis o'clock's 1234567890 3.14e-10 v2.0.1 0x1F #tag @name a_b __init__ CamelCase",
    " leading, trailing  ",
    "\n",
    "   \n   x\t\t\n \n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Ça coûte 3 €, señor! İstanbul ΑΒΓ αβγ Привет",
    "数据需要清洗。日本語のテキスト、한국어 텍스트. ภาษาไทย العربية עברית हिन्दी",
    "🙂👩‍👩‍👧 e\u0301 \u00a0\u2003\u3000\u200b\ufeff ½ ² ٣ Ⅻ ﬁ \x00\x01\x7f\x80",
    "<|endoftext|><s></s>[INST]<unk>{{ }} ../path\\to C:\\x http://a.b/c?d=e&f=g#h user@host.org",
    "def f(x):\n    return {'a': [1, 2, 3]}  # done\n\n\nclass A(B):\n\tpass\n",
)

# Growth of the process after which gigatoken's cache is thrown away: more than what one shard of lines of text
# makes of it, less than would let the cache's next doubling pass 500 MB [bytes].
RENEW_BYTES = 144 << 20
# Texts that are encoded one by one between looks at the process's size, each of which costs as much as a short text.
CALLS_A_LOOK = 256


class Encoder:
    """Encodes raw texts as a `TextTokenizer` says; `name` is the library that does it, with its version.

    `slow_because` is why gigatoken cannot do it; empty where it does, or was not asked to.
    """

    def __init__(self, tokenizer: TextTokenizer, fast: bool = True) -> None:
        self._tokenizer = tokenizer
        _slow(tokenizer.encoder, [""])  # loaded first: it must not count as growth of gigatoken's cache
        loaded = _FastEncoder.load(tokenizer) if fast else None
        self.slow_because = loaded if isinstance(loaded, str) else ""
        self._fast = loaded if isinstance(loaded, _FastEncoder) else None
        give_back()
        library = "gigatoken" if self._fast else "tokenizers"
        self.name = f"{library} {version(library)}"

    def encode(self, texts: Sequence[str], blobs: Sequence[bytes]) -> Ragged:
        """Token ids of each text, without BOS and EOD.  `blobs` are the same texts in UTF-8."""
        if self._fast is None:
            return _slow(self._tokenizer.encoder, texts)
        found = self._fast.encode(blobs)
        lent = np.flatnonzero(found.values >= self._tokenizer.identity.vocab_size)
        return self._mended(found, lent, texts) if lent.size else found

    def encode_one(self, text: str) -> np.ndarray:
        """Token ids of one text, as `encode` gives them, at a thirtieth of a batch's own cost."""
        if self._fast is not None:
            found = self._fast.encode_one(text.encode())
            if not (found >= self._tokenizer.identity.vocab_size).any():
                return found
        return _slow(self._tokenizer.encoder, [text]).values

    def _mended(self, found: Ragged, lent: np.ndarray, texts: Sequence[str]) -> Ragged:
        """`found`, with the texts in which tokens `lent` stand encoded by the tokenizers library."""
        wrong = set(np.searchsorted(found.bounds, lent, side="right").tolist())
        return ragged(
            [
                _slow(self._tokenizer.encoder, [text]).values if index + 1 in wrong else found[index]
                for index, text in enumerate(texts)
            ]
        )

    @property
    def is_checked(self) -> bool:
        """Whether there is something to hold against the tokenizers library."""
        return self._fast is not None

    def check(self, text: str, tokens: np.ndarray, where: object) -> None:
        """Holds the tokens of a text against the tokenizers library's.

        Errors: a UserError naming `where` if they are others.
        """
        if not np.array_equal(tokens, _slow(self._tokenizer.encoder, [text]).values):
            problem = f"{self.name} and the tokenizers library disagree on a part of it, so nothing is written"
            raise UserError(where, problem, "set encoder=tokenizers for this tokenizer")


class _FastEncoder:
    """gigatoken over one tokenizer, made anew when its cache has grown."""

    def __init__(self, spec: bytes) -> None:
        self._spec = spec
        self._calls = 0
        self._renew()
        self._limit = resident_bytes() + RENEW_BYTES

    @classmethod
    def load(cls, tokenizer: TextTokenizer) -> _FastEncoder | str:
        """Where gigatoken cannot take this tokenizer, the reason."""
        try:
            made = cls(tokenizer.fast_spec)
        except Exception as error:  # its Rust side raises several kinds, for formats it does not know
            return next(iter(str(error).strip().splitlines()), type(error).__name__)
        known = tokenizer.identity.vocab_size  # ids above are lent, and their texts go to the tokenizers library anyway
        for probe in PROBES:
            ours, theirs = made.encode([probe.encode()]).values, _slow(tokenizer.encoder, [probe]).values
            if not (ours >= known).any() and not np.array_equal(ours, theirs):
                return "it takes it for another one"
        return made

    def encode(self, blobs: Sequence[bytes]) -> Ragged:
        self._renew_if_grown()
        assert self._tokenizer is not None
        layout = self._tokenizer.encode_batch(list(blobs), parallel=False).layout
        bounds = np.asarray(layout.offsets.data).astype(np.int64, copy=False)
        return Ragged(np.asarray(layout.content.data)[bounds[0] : bounds[-1]], bounds - bounds[0])

    def encode_one(self, blob: bytes) -> np.ndarray:
        self._calls += 1
        if self._calls % CALLS_A_LOOK == 0:
            self._renew_if_grown()
        assert self._tokenizer is not None
        found: np.ndarray = self._tokenizer.encode(blob)
        return found

    def _renew_if_grown(self) -> None:
        """Renews where the process has grown; where little came back, what grew is another's, and does not count."""
        grown = resident_bytes()
        if grown <= self._limit:
            return
        self._renew()
        left = resident_bytes()
        if grown - left < RENEW_BYTES // 2:  # not each time: what a renewal leaves behind would raise it for ever
            self._limit = left + RENEW_BYTES

    def _renew(self) -> None:
        from gigatoken import Tokenizer

        self._tokenizer: Tokenizer | None = None  # the old one goes before the new one comes
        give_back()
        self._tokenizer = Tokenizer.from_json(self._spec)
        give_back()  # what reading the file took


def _slow(tokenizer: Tokenizer, texts: Sequence[str]) -> Ragged:
    encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return ragged([np.array(encoding.ids, np.uint32) for encoding in encodings])
