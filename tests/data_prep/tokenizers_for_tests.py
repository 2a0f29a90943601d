"""Small tokenizers of the kinds that corpora are indexed with, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_prep.indexing.documents import DocumentMaker
from data_prep.indexing.encoder import Encoder
from data_prep.indexing.rows import Batch
from data_prep.indexing.tokenizer import TextTokenizer

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
WORDS = [
    "The cell divides, and each half of the cell grows again.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich; 12 345 Mal.",
    "数据是新的石油。数据需要清洗。",
    "def f(x):\n\treturn x  # done\n\n\nprint(f(1234567))",
]


def llama3_like(folder: Path, vocab_size: int = 400, lacking: str = "", nfc: bool = False) -> Path:
    """Byte-level BPE with Llama-3's split, BOS by its own rule; `lacking` are byte characters without a token."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(lacking))
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text for text in WORDS if not set(lacking) & set(text)], trainer)
    return save(tokenizer, folder)


def metaspace(folder: Path, vocab_size: int = 400) -> Path:
    """BPE as SentencePiece has it: blanks as their own character, byte fallback."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size + 300, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] == "<unk>"]
    return save(Tokenizer.from_str(json.dumps(spec)), folder)


def wordpiece(folder: Path) -> Path:
    """Lower-casing WordPiece: its tokens do not spell the text out."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    return save(tokenizer, folder)


def save(tokenizer: Tokenizer, folder: Path) -> Path:
    """The directory of a tokenizer whose BOS is `<|begin|>` and whose EOS is `<|end|>`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<|begin|>", "<|end|>", "<|turn|>")])
    bos = ("<|begin|>", tokenizer.token_to_id("<|begin|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[bos])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "additional_special_tokens": ["<|turn|>"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


_LAST: list[Any] = []  # a tokenizer and the maker over it


def encode_batch(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text as the document it becomes; an empty array for a text without a token."""
    batch = Batch([f"text {number}" for number in range(len(texts))], [{}] * len(texts), list(texts))
    if not _LAST or _LAST[0] is not tokenizer:
        _LAST[:] = [tokenizer, DocumentMaker(tokenizer, Encoder(tokenizer))]
    made = _LAST[1].make(batch, "text")
    found = dict(zip(made.kept, range(len(made.kept)), strict=True))
    return [made.tokens[found[place]] if place in found else np.empty(0, np.int64) for place in range(len(texts))]
