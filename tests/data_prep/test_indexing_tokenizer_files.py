"""Tokenizers on disk: what is found where, the same fingerprint every time, and damage told in a line."""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import sentencepiece_model_pb2
from tokenizer_kinds import KINDS, Kind, sentencepiece_model
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers_for_tests import encode_batch

from data_prep.errors import UserError
from data_prep.indexing.tiktoken_file import SCHEMES
from data_prep.indexing.tokenizer import check_tokenizer, load_tokenizer
from data_prep.indexing.tokenizer_files import read_tokenizer
from data_prep.settings import IndexSettings, TiktokenScheme

RAW = IndexSettings(prepend_bos=False, append_eod=False)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    """One of each family."""
    names = ("byte_level", "sentencepiece_bpe", "sentencepiece_unigram", "llama3", "cl100k_base")
    return {name: KINDS[name](tmp_path_factory.mktemp(name)) for name in names}


def fingerprint(kind: Kind) -> str:
    return load_tokenizer(kind.path, IndexSettings(tiktoken_scheme=kind.scheme)).identity.fingerprint


def test_content_decides_and_tokenizer_json_wins(kinds: dict[str, Kind], tmp_path: Path) -> None:
    """A tokenizer.model is SentencePiece or tiktoken; one file may go by any name."""
    for name in ("sentencepiece_bpe", "llama3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_bytes(kinds[name].path.read_bytes())
        settings = IndexSettings(tiktoken_scheme=kinds[name].scheme)
        assert load_tokenizer(tmp_path / name, settings).identity.fingerprint == fingerprint(kinds[name])
    both = tmp_path / "sentencepiece_bpe"
    for file in kinds["byte_level"].path.iterdir():
        (both / file.name).write_bytes(file.read_bytes())
    for path in (both, both / "tokenizer.json"):
        assert load_tokenizer(path, IndexSettings()).identity.fingerprint == fingerprint(kinds["byte_level"])
    assert load_tokenizer(both / "tokenizer.model", IndexSettings()).identity.fingerprint == fingerprint(
        kinds["sentencepiece_bpe"]
    )


def test_fingerprint_of_a_hugging_face_directory_stays(tmp_path: Path) -> None:
    """Datasets on disk carry it: this value was taken before other kinds were read."""
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    vocab = {token: index for index, token in enumerate(tokens)}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "vocab": vocab}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": index, "content": token, **flags} for index, token in enumerate(tokens[:2])]
    nothing = {"truncation": None, "padding": None, "normalizer": None, "post_processor": None, "decoder": None}
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    spec = {"version": "1.0", **nothing, "added_tokens": added, "pre_tokenizer": split}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**spec, "model": {**model, "merges": [["t", "h"]]}}))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    identity = load_tokenizer(tmp_path, IndexSettings()).identity
    assert identity.fingerprint == "008d18f826a73ddc59c8c608f6c499e24dbbd4486f666c39fcf0ccdb314a9f7c"


@pytest.mark.parametrize("name", ["sentencepiece_bpe", "sentencepiece_unigram", "llama3", "cl100k_base"])
def test_conversion_is_the_same_in_every_process(kinds: dict[str, Kind], name: str) -> None:
    kind = kinds[name]
    code = (
        "import sys, pathlib; from data_prep.indexing.tokenizer import load_tokenizer as load;"
        "from data_prep.settings import IndexSettings as S;"
        "print(load(pathlib.Path(sys.argv[1]), S(tiktoken_scheme=sys.argv[2] or None)).identity.fingerprint)"
    )
    command = [sys.executable, "-c", code, str(kind.path), kind.scheme or ""]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert fingerprint(kind) == fingerprint(kind) == other


def test_another_kind_or_scheme_is_told_apart(kinds: dict[str, Kind]) -> None:
    for name in ("sentencepiece_bpe", "llama3", "cl100k_base"):
        settings = IndexSettings(tiktoken_scheme=kinds[name].scheme)
        identity = load_tokenizer(kinds[name].path, settings).identity
        check_tokenizer(kinds[name].path, identity, "dataset")
        for other in {"sentencepiece_bpe", "sentencepiece_unigram", "byte_level", "cl100k_base"} - {name}:
            with pytest.raises(UserError, match="dataset: was written with another tokenizer"):
                check_tokenizer(kinds[other].path, identity, "dataset")
    three, four = (load_tokenizer(kinds["llama3"].path, IndexSettings(tiktoken_scheme=s)) for s in ("llama3", "llama4"))
    assert three.identity.fingerprint != four.identity.fingerprint


def test_settings_name_every_scheme() -> None:
    assert set(TiktokenScheme.__args__) == set(SCHEMES)


def test_a_scheme_is_told_by_openais_names_or_must_be_named(kinds: dict[str, Kind]) -> None:
    path = kinds["cl100k_base"].path
    assert read_tokenizer(path).spec == read_tokenizer(path, "cl100k_base").spec
    legal = r"llama3, llama4, r50k_base, cl100k_base, o200k_base"
    with pytest.raises(
        UserError, match=rf"tokenizer\.model: .* does not tell .*; set tiktoken_scheme \(legal: {legal}"
    ):
        read_tokenizer(kinds["llama3"].path)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def changed(model: bytes, **settings: Any) -> bytes:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    for name, value in settings.items():
        part, _, field = name.partition("__")
        setattr(getattr(proto, part), field, value)
    return proto.SerializeToString()


def test_what_is_not_there_or_too_many_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such file or directory; give a Hugging Face directory"):
        read_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no tokenizer\.json, \*\.model or \*\.tiktoken in it; give"):
        read_tokenizer(tmp_path)
    for name in ("a.model", "b.tiktoken"):
        written(tmp_path / name, b"x")
    with pytest.raises(UserError, match=r"several tokenizers .* \(a\.model, b\.tiktoken\); give the file itself"):
        read_tokenizer(tmp_path)


def test_damaged_tiktoken_files_are_named(kinds: dict[str, Kind], tmp_path: Path) -> None:
    good = kinds["cl100k_base"].path.read_bytes().splitlines(keepends=True)
    cases = {
        r":3: not a tiktoken file: expected a base64 token": [*good[:2], b"not one\n", *good[2:]],
        r":2: not a tiktoken file: expected a base64 token": [good[0], b"I!== 1\n", *good[2:]],
        r":4: not a tiktoken file: rank 0 stands twice": [*good[:3], b"AAAA 0\n", *good[4:]],
        r"expected ranks 0 to \d+ without a gap": good[:-2] + good[-1:],
        r"byte 0x21 has no rank": [b"AAAA 0\n", *good[1:]],
        r"is empty where": [],
    }
    for told, rows in cases.items():
        with pytest.raises(UserError, match=told):
            read_tokenizer(written(tmp_path / "cl100k_base.tiktoken", b"".join(rows)))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda good: good[: len(good) // 2], "not a SentencePiece model|cannot load"),
        (lambda good: b"", "is empty where a Hugging Face directory"),
        (lambda good: b"\x00\x01 hello", "not a SentencePiece model, nor lines of a tiktoken file"),
        (lambda good: sentencepiece_model(model_type="char"), "of type 'char'; legal: bpe, unigram"),
        (lambda good: sentencepiece_model(model_type="word", character_coverage=1), "of type 'word'; legal"),
        (lambda good: sentencepiece_model(normalization_rule_name="nmt_nfkc"), r"own table \(nmt_nfkc\).*; train it"),
        (lambda good: changed(good, normalizer_spec__escape_whitespaces=False), "leaves blanks as they are"),
        (lambda good: changed(good, trainer_spec__treat_whitespace_as_suffix=True), "whitespace behind words"),
    ],
)
def test_sentencepiece_models_that_cannot_be_read_to_the_id(
    kinds: dict[str, Kind], tmp_path: Path, make: Any, told: str
) -> None:
    path = written(tmp_path / "m.model", make(kinds["sentencepiece_bpe"].path.read_bytes()))
    with pytest.raises(UserError, match=told) as caught:
        load_tokenizer(path, RAW)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_conversion_with_other_ids_is_refused(
    kinds: dict[str, Kind], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merges by another rule than the library's are caught by the library."""
    module = importlib.import_module("transformers.convert_slow_tokenizer")  # the package may have a function so named
    monkeypatch.setattr(module, "generate_merges", lambda *_: [])
    with pytest.raises(UserError, match="other ids than the sentencepiece library does; give"):
        read_tokenizer(kinds["sentencepiece_bpe"].path)


def test_a_tokenizer_that_fails_on_unknown_characters_is_refused(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="cannot encode a character outside its vocabulary"):
        load_tokenizer(tmp_path, RAW)


@pytest.mark.parametrize("name", ["sentencepiece_bpe", "sentencepiece_unigram", "llama3", "byte_level"])
def test_flipped_and_missing_bytes_never_give_a_traceback(kinds: dict[str, Kind], tmp_path: Path, name: str) -> None:
    kind, draw = kinds[name], random.Random(5)
    source = kind.path if kind.path.is_file() else kind.path / "tokenizer.json"
    good, path, refused = source.read_bytes(), tmp_path / source.name, 0
    for _ in range(150):
        bad = bytearray(good)
        near_an_end = draw.choice([draw.randrange(len(bad)), draw.randrange(100), len(bad) - 1 - draw.randrange(300)])
        bad[near_an_end] ^= 1 << draw.randrange(8)
        written(path, bytes(bad[: draw.choice([len(bad), len(bad), draw.randrange(len(bad))])]))
        try:
            ours = load_tokenizer(path, IndexSettings(tiktoken_scheme=kind.scheme, append_eod=False))
            encode_batch(ours, ["a </s>数据"])
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 30
