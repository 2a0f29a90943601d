"""Small trained tokenizers of every kind, and the libraries they belong to as oracles."""

from __future__ import annotations

import base64
import inspect
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import sentencepiece
import tiktoken
import tiktoken_ext.openai_public as openai
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import TikTokenConverter

_TEXT = """
the cell divides into two a naïve café Zwölf Boxkämpfer jagen Eva über den großen Sylter Deich это простой текст
数据 清洗 很 重要 日本語 テキスト 한국어 नमस्ते דוד 😀 👍🏽 don't I'LL we've she's 2024 3.14159 1,000,000 x=y+1;
/usr/lib/python3 f(x){return} </s <s> <unk> <0x41> ▁▁ ▁a http://a.b/c?d=e&f 'S '\u017f ǅ ª ² Ⅷ
"""
_WORDS = _TEXT.split()
_BLANKS = [" ", " ", " ", " ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", " \n  ", "\u00a0", "\u3000", "\u2028"]
_ODD = [
    "\x00",
    "\x01",
    "\x1f",
    "\x7f",
    "\x85",
    "\u200b",
    "\ufeff",
    "\ufffd",
    "\U0010ffff",
    "e\u0301",
    "\ue000",
    "\u00b4",
    "Ω",
]


def lines(count: int, seed: int) -> list[str]:
    """Varied text: languages, runs of blanks, digits, control characters, and what looks like a control token."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        parts = [draw.choice(["", " ", "\n", "  "])]
        for _ in range(draw.randrange(12)):
            word = draw.choice(_WORDS) if draw.random() < 0.9 else draw.choice(_ODD)
            parts += [word[: draw.randrange(1, 9)] if draw.random() < 0.2 else word, draw.choice(_BLANKS)]
        made.append("".join(parts))
    return ["", " ", "   ", "\n", "a", *made]


@dataclass(frozen=True)
class Kind:
    """A tokenizer at `path`; `encode` is its own library reading a text as ordinary text, `decode` gives it back."""

    path: Path
    scheme: str | None
    control: dict[str, int]
    encode: Callable[[str], list[int]] | None
    decode: Callable[[list[int]], str] | None


def _save(tokenizer: Tokenizer, folder: Path, unk: str | None, lossless: bool) -> Kind:
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": unk}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    control = {token: tokenizer.token_to_id(token) for token in ("<s>", "</s>", "<|im_end|>")}
    decode = (lambda ids: tokenizer.decode(ids, skip_special_tokens=False)) if lossless else None
    return Kind(folder, None, control, None, decode)


SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>"]


def _byte_level(folder: Path) -> Kind:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL[1:], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([*lines(200, 1), *["</s> <s> <|im_end|>"] * 200], trainer)
    return _save(tokenizer, folder, None, lossless=True)


def _wordpiece(folder: Path) -> Kind:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(lines(200, 1), trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL))
    return _save(tokenizer, folder, "<unk>", lossless=False)


def _wordlevel(folder: Path) -> Kind:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(lines(200, 1), trainers.WordLevelTrainer(special_tokens=SPECIAL))
    return _save(tokenizer, folder, "<unk>", lossless=False)


def _unigram(folder: Path) -> Kind:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(lines(200, 1), trainer)
    return _save(tokenizer, folder, "<unk>", lossless=False)


def _byte_fallback(folder: Path) -> Kind:
    """As Llama-2's tokenizer.json: a BPE whose bytes stand after the special tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*SPECIAL, *fallback], max_token_length=8)
    tokenizer.train_from_iterator(lines(100, 1), trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = spec["added_tokens"][: len(SPECIAL)]
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    return _save(tokenizer, folder, "<unk>", lossless=False)


def sentencepiece_model(lossless: bool = True, **options: Any) -> bytes:
    """A model trained on our lines, without a table of characters unless `options` say so."""
    written = BytesIO()
    defaults = {"normalization_rule_name": "identity", "byte_fallback": True, "vocab_size": 600}
    defaults |= {"minloglevel": 2, "hard_vocab_limit": False, "character_coverage": 0.98}
    if lossless:
        defaults["remove_extra_whitespaces"] = False
    corpus = [line.replace("\n", " ") for line in lines(400, 1)] + ["</s> <s> [INST] <sep>"] * 100
    trainer = sentencepiece.SentencePieceTrainer
    trainer.train(sentence_iterator=iter(corpus), model_writer=written, **(defaults | options))
    return written.getvalue()


def _sentencepiece(folder: Path, lossless: bool = True, **options: Any) -> Kind:
    path = folder / "tokenizer.model"
    path.write_bytes(sentencepiece_model(lossless, **options))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = range(processor.get_piece_size())
    control = {processor.id_to_piece(index): index for index in pieces if processor.is_control(index)}
    decode = processor.decode if lossless and options.get("byte_fallback", True) else None
    return Kind(path, None, control, processor.encode, decode)


def ranks() -> dict[bytes, int]:
    """Ranks of a byte-level BPE trained on our lines."""
    tokenizer = Tokenizer(models.BPE())
    pattern = pre_tokenizers.Split(Regex(r"\s+\S*|\S+|\p{N}{1,3}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pattern, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*lines(200, 1), *["<|end_of_text|><|endoftext|>"] * 100], trainer)
    prints = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    names = {chr(byte): byte for byte in prints}
    names |= {chr(256 + index): byte for index, byte in enumerate(sorted(set(range(256)) - set(prints)))}
    return {bytes(names[name] for name in token): rank for token, rank in tokenizer.get_vocab().items()}


def official(scheme: str, known: dict[bytes, int]) -> dict[str, Any]:
    """What tiktoken itself says of OpenAI's encodings, with `known` for the ranks that it would download."""
    load, openai.load_tiktoken_bpe = openai.load_tiktoken_bpe, lambda *_, **__: known
    try:
        return openai.ENCODING_CONSTRUCTORS[scheme]()
    finally:
        openai.load_tiktoken_bpe = load


def pattern(scheme: str) -> str:
    """Llama-3's is the default of transformers' converter; Llama-4 has that of o200k_base."""
    if scheme == "llama3":
        return inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default
    return official({"llama4": "o200k_base"}.get(scheme, scheme), {})["pat_str"]


def _tiktoken(folder: Path, scheme: str, control: dict[str, int]) -> Kind:
    known = ranks()
    path = folder / ("tokenizer.model" if scheme.startswith("llama") else f"{scheme}.tiktoken")
    rows = sorted(known.items(), key=lambda row: row[1])
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in rows))
    theirs = tiktoken.Encoding(scheme, pat_str=pattern(scheme), mergeable_ranks=known, special_tokens={})
    ids = {token: len(known) + distance for token, distance in control.items()}
    return Kind(path, scheme, ids, theirs.encode_ordinary, theirs.decode)


KINDS: dict[str, Callable[[Path], Kind]] = {
    "byte_level": _byte_level,
    "wordpiece": _wordpiece,
    "wordlevel": _wordlevel,
    "unigram": _unigram,
    "byte_fallback": _byte_fallback,
    "sentencepiece_bpe": lambda folder: _sentencepiece(folder, model_type="bpe"),
    "sentencepiece_symbols": lambda folder: _sentencepiece(
        folder, model_type="bpe", user_defined_symbols=["[INST]", "▁▁▁▁", "\n\n"], control_symbols=["<sep>"]
    ),
    "sentencepiece_trimmed": lambda folder: _sentencepiece(folder, lossless=False, model_type="bpe"),
    "sentencepiece_bare": lambda folder: _sentencepiece(
        folder, model_type="bpe", byte_fallback=False, add_dummy_prefix=False, bos_id=-1
    ),
    "sentencepiece_unigram": lambda folder: _sentencepiece(folder, model_type="unigram"),
    "sentencepiece_unigram_unk": lambda folder: _sentencepiece(
        folder, lossless=False, model_type="unigram", byte_fallback=False, pad_id=3
    ),
    "llama3": lambda folder: _tiktoken(folder, "llama3", {"<|begin_of_text|>": 0, "<|end_of_text|>": 1}),
    "llama4": lambda folder: _tiktoken(folder, "llama4", {"<|begin_of_text|>": 0, "<|end_of_text|>": 1}),
    "r50k_base": lambda folder: _tiktoken(folder, "r50k_base", {"<|endoftext|>": 0}),
    "cl100k_base": lambda folder: _tiktoken(folder, "cl100k_base", {"<|endoftext|>": 1, "<|endofprompt|>": 20}),
    "o200k_base": lambda folder: _tiktoken(folder, "o200k_base", {"<|endoftext|>": 1, "<|endofprompt|>": 20}),
}
ORACLES = [name for name in KINDS if name.startswith("sentencepiece")] + list(KINDS)[-5:]
