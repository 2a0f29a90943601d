"""Characters that a tokenizer loses are counted; one that covers every byte says 0 without a look."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizer_kinds import KINDS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from data_prep.indexing.coverage import Coverage, coverage_of
from data_prep.indexing.tokenizer import load_tokenizer
from data_prep.settings import IndexSettings


def coverage_for(tokenizer: Tokenizer) -> Coverage:
    return coverage_of(json.loads(tokenizer.to_str()), tokenizer.get_vocab(with_added_tokens=False))


RAW = {"prepend_bos": False, "append_eod": False}


def byte_level(without: bytes) -> Tokenizer:
    """A vocabulary of bytes that lacks some: characters that need them leave no trace in the ids."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # says how the library names a byte
    ascii_ = {split.pre_tokenize_str(chr(byte))[0][0]: byte for byte in range(128)}
    kept = sorted(name for name in split.alphabet() if ascii_.get(name, 255) not in without)
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(kept)}, []))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_bytes_without_a_token_are_counted_as_characters() -> None:
    tokenizer = byte_level(without=b"\x00\x01q")
    coverage = coverage_for(tokenizer)
    for text, lost in (("a quick q\x01 数据", 3), ("nothing here 数据", 0), ("", 0), ("\x00" * 5, 5)):
        assert coverage.uncovered(text, tokenizer) == lost
        assert len(tokenizer.decode(tokenizer.encode(text).ids)) == len(text) - lost
    assert not coverage.complete


def test_a_character_is_lost_with_any_of_its_bytes() -> None:
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"\u0122"})  # stands for a byte from 0x80 on
    vocab = {token: index for index, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    lost = [chr(code) for code in range(0x80, 0x3000) if len(tokenizer.encode(chr(code)).ids) < len(chr(code).encode())]
    assert len(lost) > 50
    assert coverage_for(tokenizer).uncovered("ab" + "".join(lost) + "c", tokenizer) == len(lost)


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece_bpe", "sentencepiece_unigram", "llama3"])
def test_kinds_that_cover_every_byte(tmp_path: Path, name: str) -> None:
    kind = KINDS[name](tmp_path)
    ours = load_tokenizer(kind.path, IndexSettings(tiktoken_scheme=kind.scheme, **RAW))
    assert ours.coverage.complete
    assert ours.uncovered("\x00\U0010ffff数据 any </s>") == 0


@pytest.mark.parametrize(
    ("name", "text", "lost"),
    [
        ("wordpiece", "the cell ꙮ the", 1),
        ("wordlevel", "the cell 12ab the", 4),
        ("unigram", "the cell ꙮꙮ the", 2),
        ("sentencepiece_bare", "the ꙮꙮ cell", 2),
        ("sentencepiece_unigram_unk", "the ꙮ cell ꙮ", 2),
    ],
)
def test_unknown_characters_are_counted(tmp_path: Path, name: str, text: str, lost: int) -> None:
    ours = load_tokenizer(KINDS[name](tmp_path).path, IndexSettings(**RAW))
    assert ours.uncovered(text) == lost
    assert ours.uncovered("the cell") == ours.uncovered("") == 0


def test_bpe_without_unk_leaves_characters_out(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, " ": 3}, [("a", "b")]))
    coverage = coverage_for(tokenizer)
    assert coverage.uncovered("ab ?a?b", tokenizer) == 2 == len("ab ?a?b") - len("ab" + " " + "a" + "b")
    assert coverage.uncovered("ab ab", tokenizer) == 0
