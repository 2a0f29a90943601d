"""Which characters of a text a tokenizer loses, because no token but UNK, or none at all, stands for them.

A byte-level vocabulary may lack byte values (SmolLM2's lacks eight that text can hold): such
characters vanish without a trace.  Other kinds give UNK.  Blanks that a kind drops between words by
design are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

# No UTF-8 holds these.
_NEVER_BYTES = {0xC0, 0xC1, *range(0xF5, 0x100)}


@dataclass(frozen=True)
class Coverage:
    """What a tokenizer covers.  `complete`: every character of every text.

    `lost` are the byte values without a token, None where tokens do not stand for bytes; `unk` is the id of UNK, and
    `affixes` what a token has before and after what it spells.
    """

    complete: bool
    lost: bytes | None
    unk: int | None
    drops: bool
    affixes: tuple[str, str]

    def uncovered(self, text: str, encoder: Tokenizer) -> int:
        """Characters of `text` that are lost when `encoder`, the tokenizer itself, encodes it."""
        if self.complete:
            return 0
        if self.lost is not None:
            if not any(byte in self.lost for byte in set(text.encode())):
                return 0
            return sum(any(byte in self.lost for byte in character.encode()) for character in text)
        if self.drops:
            return self._dropped(text, encoder)
        return self._unknown(text, encoder)

    def _unknown(self, text: str, encoder: Tokenizer) -> int:
        encoding = encoder.encode(text, add_special_tokens=False)
        covered = bytearray(len(text))
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token != self.unk:
                covered[start:end] = b"\1" * (end - start)
        return sum(not seen and not character.isspace() for seen, character in zip(covered, text, strict=True))

    def _dropped(self, text: str, encoder: Tokenizer) -> int:
        """BPE without UNK leaves unknown characters out, and its offsets slip there: lengths are compared instead."""
        prefix, suffix = self.affixes
        if encoder.normalizer:
            text = encoder.normalizer.normalize_str(text)
        pieces = encoder.pre_tokenizer.pre_tokenize_str(text) if encoder.pre_tokenizer else [(text, (0, len(text)))]
        lost = 0
        for piece, _ in pieces:
            values = [token.value for token in encoder.model.tokenize(piece)]
            lost += len(piece) - sum(len(value.removeprefix(prefix).removesuffix(suffix)) for value in values)
        return lost


def coverage_of(spec: Mapping[str, Any], vocab: Mapping[str, int]) -> Coverage:
    """The coverage of a tokenizer.json with this vocabulary (added tokens left out)."""
    model = spec["model"]
    unk, lost = _unk_id(model, vocab), _lost_bytes(spec, vocab)
    affixes = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    return Coverage(lost == b"", lost, unk, model.get("type") == "BPE" and unk is None, affixes)


def _unk_id(model: Mapping[str, Any], vocab: Mapping[str, int]) -> int | None:
    if model.get("type") == "Unigram":
        return model.get("unk_id")
    token = model.get("unk_token")
    return None if token is None else vocab.get(token)


def _lost_bytes(spec: Mapping[str, Any], vocab: Mapping[str, int]) -> bytes | None:
    """Byte values of UTF-8 that have no token; None for a tokenizer that does not work on bytes."""
    legal = [byte for byte in range(256) if byte not in _NEVER_BYTES]
    if spec["model"].get("byte_fallback") and all(f"<0x{byte:02X}>" in vocab for byte in range(256)):
        return b""
    steps = [spec.get("pre_tokenizer") or {}, spec.get("normalizer") or {}]
    steps += [inner for step in steps for inner in step.get("pretokenizers", step.get("normalizers", ()))]
    if spec["model"].get("type") != "BPE" or not any(step.get("type") == "ByteLevel" for step in steps):
        return None
    names = _byte_names()
    return bytes(byte for byte in legal if names[byte] not in vocab)


def _byte_names() -> list[str]:
    """The character by which a byte-level vocabulary names each byte: itself where it prints, else from U+0100 on."""
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in prints else chr(next(others)) for byte in range(256)]
