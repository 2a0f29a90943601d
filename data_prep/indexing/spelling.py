"""What the tokens of a tokenizer spell: how many bytes of text each stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

_BLANK = "▁"
_NFC = {"type": "NFC"}
# Normalizers after which the tokens still spell the text, or (NFC) a text that was normal before.
_SPELLED_OUT = (
    _NFC,
    {"type": "Prepend", "prepend": _BLANK},
    {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK},
)


@dataclass(frozen=True)
class Spelling:
    """Of each token, [vocab_size]: the bytes of text it spells, and whether it starts with a blank of SentencePiece's.

    `lengths` is None where the tokens do not spell the text out.  `nfc`: only a text in that form is spelled out.
    `every_byte`: each byte value has a token.
    """

    lengths: np.ndarray | None
    blank: np.ndarray
    nfc: bool
    every_byte: bool


def spelling_of(spec: Mapping[str, Any], vocab_size: int) -> Spelling:
    """The spelling of a tokenizer.json."""
    steps = _steps(spec.get("normalizer"), "normalizers")
    lengths, blank = _token_lengths(spec, vocab_size)
    if any(step not in _SPELLED_OUT for step in steps):
        lengths = None
    return Spelling(lengths, blank, _NFC in steps, not _missing_bytes(spec))


def with_every_byte(spec: Mapping[str, Any], first_free: int) -> dict[str, Any]:
    """A byte-level BPE's tokenizer.json in which each byte value has an id, from `first_free` on where it has none."""
    lent = {character: first_free + place for place, character in enumerate(_missing_bytes(spec))}
    return {**spec, "model": {**spec["model"], "vocab": {**spec["model"]["vocab"], **lent}}}


def _missing_bytes(spec: Mapping[str, Any]) -> list[str]:
    """The characters that stand for byte values without a token, in a byte-level BPE."""
    model = spec["model"]
    if model.get("type") != "BPE" or not _is_byte_level(spec):
        return []
    return sorted(set(ByteLevel.alphabet()) - model["vocab"].keys())


def _is_byte_level(spec: Mapping[str, Any]) -> bool:
    return any(step["type"] == "ByteLevel" for step in _steps(spec.get("pre_tokenizer"), "pretokenizers"))


def _token_lengths(spec: Mapping[str, Any], vocab_size: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Bytes each token spells, int64 [vocab_size], and whether it starts with a blank of SentencePiece's.

    None for the first where tokens are no parts of the text (WordPiece's ##ing).
    """
    blank = np.zeros(vocab_size, bool)
    model = spec["model"]
    vocab = model["vocab"]
    if model.get("type") not in ("BPE", "Unigram") or model.get("continuing_subword_prefix"):
        return None, blank
    pieces = vocab.items() if isinstance(vocab, dict) else ((piece, place) for place, (piece, _) in enumerate(vocab))
    byte_level = _is_byte_level(spec)
    lengths = np.zeros(vocab_size, np.int64)
    for piece, token in pieces:
        lengths[token] = len(piece) if byte_level else _spelled_bytes(piece)
        blank[token] = not byte_level and piece.startswith(_BLANK)
    for added in spec.get("added_tokens", ()):
        lengths[added["id"]] = len(added["content"].encode())
    return lengths, blank


def _spelled_bytes(piece: str) -> int:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return 1
    return len(piece.replace(_BLANK, " ").encode())


def _steps(part: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, one after the other."""
    if part is None:
        return []
    return [step for each in part[inner] for step in _steps(each, inner)] if part["type"] == "Sequence" else [part]
