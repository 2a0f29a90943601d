"""gigatoken and the tokenizers library: the same ids, one held against the other, and a fallback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers_for_tests import WORDS, llama3_like, metaspace, wordpiece

from data_prep.errors import UserError
from data_prep.indexing import encoder as encoder_module
from data_prep.indexing import index
from data_prep.indexing.encoder import Encoder
from data_prep.indexing.ragged import Ragged
from data_prep.indexing.tokenizer import TextTokenizer, load_tokenizer
from data_prep.readers import write_jsonl
from data_prep.records import Origin, TrainingText
from data_prep.settings import IndexSettings

HARD = [
    *WORDS,
    "",
    " ",
    "a\x00b\x7f",
    "\ufeff🙂👩\u200d👩\u200d👧 e\u0301",
    "<|end|><|begin|> <|en",
    "\r\n \t\n",
    "\u2019s 'S 1 23 4567",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama3_like(tmp_path_factory.mktemp("llama3"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> TextTokenizer:
    return load_tokenizer(folder, IndexSettings())


@pytest.fixture(scope="module")
def fast(tokenizer: TextTokenizer) -> Encoder:
    return Encoder(tokenizer)


def encode(encoder: Encoder, texts: Sequence[str]) -> list[list[int]]:
    found = encoder.encode(texts, [text.encode() for text in texts])
    return [found[index].tolist() for index in range(len(texts))]


def test_gigatoken_encodes_where_it_knows_the_kind(fast: Encoder, folder: Path) -> None:
    assert fast.name.startswith("gigatoken ")
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain = [text for text in HARD if "<|" not in text]
    assert encode(fast, plain) == [original.encode(text, add_special_tokens=False).ids for text in plain]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_both_libraries_give_the_same_ids(fast: Encoder, tokenizer: TextTokenizer, texts: list[str]) -> None:
    assert encode(fast, texts) == [tokenizer.encoder.encode(text).ids for text in texts]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["<|end|>", "<|begin|>", "<|turn|>", "<|", "end", "|>", " ", "x"]), max_size=12))
def test_spelled_control_tokens_are_text(fast: Encoder, tokenizer: TextTokenizer, parts: list[str]) -> None:
    (ids,) = encode(fast, ["".join(parts)])
    assert not set(ids) & set(tokenizer.control.values())
    assert len(tokenizer.control) == 3


def test_a_byte_without_a_token_goes_to_the_tokenizers_library(tmp_path: Path) -> None:
    """U+0100 and U+0120 stand for bytes 0 and 0x20 in the byte-level alphabet."""
    lacking = load_tokenizer(llama3_like(tmp_path, lacking="Ā"), IndexSettings())
    encoder = Encoder(lacking)
    texts = ["plain", "a\x00b", "\x00", "after"]
    assert encoder.name.startswith("gigatoken ")
    found = encode(encoder, texts)
    assert found == [lacking.encoder.encode(text).ids for text in texts]
    assert max(map(max, filter(None, found))) < lacking.identity.vocab_size


def test_an_unknown_kind_falls_back_and_says_so(tmp_path: Path) -> None:
    unknown = load_tokenizer(wordpiece(tmp_path), IndexSettings())
    encoder = Encoder(unknown)
    assert encoder.name.startswith("tokenizers ") and encoder.slow_because
    assert encode(encoder, WORDS) == [unknown.encoder.encode(text).ids for text in WORDS]
    asked_for = Encoder(unknown, fast=False)
    assert asked_for.name == encoder.name and not asked_for.slow_because


def test_a_kind_taken_for_another_falls_back(tmp_path: Path) -> None:
    """gigatoken 0.10 splits by GPT-2's pattern where the tokenizer says use_regex=False."""
    spec = json.loads((llama3_like(tmp_path) / "tokenizer.json").read_text())
    spec["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    encoder = Encoder(load_tokenizer(tmp_path, IndexSettings()))
    assert encoder.name.startswith("tokenizers ") and encoder.slow_because == "it takes it for another one"


def slow_lines(folder: Path, arguments: Sequence[str]) -> list[str]:
    """What a process that indexes three shards in `folder` tells of gigatoken."""
    write_jsonl(folder / "in.jsonl", [{"id": str(number), "text": WORDS[0]} for number in range(30)])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line for line in (done.stdout + done.stderr).splitlines() if "gigatoken cannot" in line]


def test_the_command_says_once_that_it_goes_the_slow_way(tmp_path: Path) -> None:
    """Once, not once a worker."""
    wordpiece(tmp_path / "tokenizer")
    command = ["-m", "megatron_ipt.cli.main", "data", "index", "in.jsonl", "--prefix", "d"]
    (line,) = slow_lines(tmp_path, [*command, "--tokenizer", "tokenizer", "--shard-mib", "0.001", "--workers", "2"])
    assert re.fullmatch(r"gigatoken cannot take this tokenizer \(.+\): the tokenizers library encodes, slower", line)


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        (wordpiece, {"workers": 0}, 1),
        (wordpiece, {"workers": 2, "encoder": "tokenizers"}, 0),
        (llama3_like, {"workers": 2}, 0),
    ],
)
def test_the_slow_way_is_told_where_it_was_not_asked_for(
    tmp_path: Path, kind: Callable[[Path], Path], changes: dict[str, object], told: int
) -> None:
    kind(tmp_path / "tokenizer")
    code = (
        "from pathlib import Path; from data_prep.indexing import index; from data_prep.settings import IndexSettings;"
    )
    code += f"index(IndexSettings(shard_mib=0.001, **{changes}), [Path('in.jsonl')], Path('tokenizer'), Path('d'))"
    assert len(slow_lines(tmp_path, ["-c", code])) == told


def test_sentencepiece_kind_agrees(tmp_path: Path) -> None:
    ours = load_tokenizer(metaspace(tmp_path), IndexSettings())
    texts = [text for text in HARD if text]
    assert encode(Encoder(ours), texts) == [ours.encoder.encode(text).ids for text in texts]


def test_a_disagreement_stops_the_shard(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = encoder_module._FastEncoder.encode

    def wrong(self: object, blobs: Sequence[bytes]) -> Ragged:
        found = right(self, blobs)  # type: ignore[arg-type]
        return Ragged(np.where(found.values == found.values[-1], 5, found.values), found.bounds)

    write_jsonl(tmp_path / "in.jsonl", [{"id": "one", "text": WORDS[0]}])
    monkeypatch.setattr(encoder_module, "PROBES", ())  # they would find it at once
    monkeypatch.setattr(encoder_module._FastEncoder, "encode", wrong)
    with pytest.raises(UserError, match=r"in.jsonl:1: gigatoken .* disagree .*; set encoder=tokenizers"):
        index(IndexSettings(), [tmp_path / "in.jsonl"], folder, tmp_path / "d")
    assert not list(tmp_path.glob("d*"))
    assert index(IndexSettings(encoder="tokenizers"), [tmp_path / "in.jsonl"], folder, tmp_path / "d").documents == 1


@pytest.mark.parametrize("kind", ["long", "chat"])
def test_the_tokens_that_are_written_are_those_that_are_checked(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The first token of each text is wrong: of long texts, or of what stands between control tokens."""
    right = encoder_module._FastEncoder.encode

    def wrong(self: object, blobs: Sequence[bytes]) -> Ragged:
        found = right(self, blobs)  # type: ignore[arg-type]
        values = found.values.copy()
        for start, blob in zip(found.bounds, blobs, strict=False):
            if kind == "chat" or len(blob) > 1500:
                values[start] ^= 1
        return Ragged(values, found.bounds)

    control = "<|turn|>"
    row: dict[str, object] = {"id": "one", "text": "Der Weg. " * 400}
    if kind == "chat":
        spans = {"ends": [3, 3 + len(control)], "kinds": "tc", "of": [0, -1]}
        row = {**TrainingText("one", "abc" + control, (Origin("one"),)).to_json(), "spans": spans}
    write_jsonl(tmp_path / "in.jsonl", [row])
    assert index(IndexSettings(), [tmp_path / "in.jsonl"], folder, tmp_path / "right").documents == 1
    monkeypatch.setattr(encoder_module, "PROBES", ())
    monkeypatch.setattr(encoder_module._FastEncoder, "encode", wrong)
    with pytest.raises(UserError, match=r"in.jsonl:1: gigatoken .* disagree"):
        index(IndexSettings(), [tmp_path / "in.jsonl"], folder, tmp_path / "d")


def test_a_grown_cache_is_thrown_away(tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tokenizer)
    before = encode(encoder, HARD)
    renewed: list[bool] = []
    right = encoder_module._FastEncoder._renew
    monkeypatch.setattr(encoder_module._FastEncoder, "_renew", lambda self: (renewed.append(True), right(self)))
    monkeypatch.setattr(encoder_module, "resident_bytes", lambda: 1 << 50)
    assert encode(encoder, HARD) == before
    assert renewed


@pytest.mark.parametrize(("freed", "renewals"), [(0, 1), (130 << 20, 5)])
def test_memory_of_others_is_not_taken_for_the_cache_s(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, freed: int, renewals: int
) -> None:
    """Five looks at a process that has 150 MB more than when it was loaded, and 4 MB more at each look."""
    encoder = Encoder(tokenizer)
    held, renewed = [encoder_module.resident_bytes() + (150 << 20)], []

    def renew(_: object) -> None:
        renewed.append(held[0])
        held[0] -= freed

    monkeypatch.setattr(encoder_module._FastEncoder, "_renew", renew)
    monkeypatch.setattr(encoder_module, "resident_bytes", lambda: held[0])
    for look in range(5):
        held[0] += (4 << 20) + (freed if look else 0)
        encode(encoder, HARD)
    assert len(renewed) == renewals
