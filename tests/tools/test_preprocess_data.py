"""tools/preprocess_data.py by Megatron's flags: the bytes that Megatron's own builder writes for the same text."""

from __future__ import annotations

import base64
import gzip
import importlib
import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from forks import environment, warm_python
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from data_prep.indexing.verify import verify

TOOL = Path(__file__).parents[2] / "tools" / "preprocess_data.py"
ROWS = [
    {"text": "The cell divides.", "title": "Cells"},
    {"text": "Zwölf Boxkämpfer", "title": "数据"},
    {"text": "", "title": "empty"},
    {"text": "line\nline", "title": "Two", "url": "x"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bytes as tokens, `<s>` before each text by the tokenizer's own rule, `</s>` as EOS."""
    folder = tmp_path_factory.mktemp("tokenizer")
    names = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytes_ = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    bytes_.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=bytes_, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def tool(*arguments: object, fresh: bool = False) -> subprocess.CompletedProcess[str]:
    """The shebang finds python3 on PATH; `fresh`, with all of its imports, as a user starts it."""
    here = Path(sys.executable if fresh else warm_python()).parent
    variables = {**environment(), "PATH": f"{here}:{os.environ['PATH']}"}
    return subprocess.run([TOOL, *map(str, arguments)], capture_output=True, text=True, check=False, env=variables)


def files(prefix: Path) -> list[bytes]:
    return [prefix.with_name(f"{prefix.name}{suffix}").read_bytes() for suffix in (".bin", ".idx")]


def theirs(prefix: Path, tokenizer: Path, key: str, eod: bool, bos: bool = True) -> list[bytes]:
    """What Megatron's script writes: transformers' ids of each text, and EOS where asked; empty texts left out."""
    indexed: Any = importlib.import_module("megatron.core.datasets.indexed_dataset")
    fast = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    dtype = indexed.DType.optimal_dtype(len(fast))
    builder = indexed.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for text in (row[key] for row in ROWS if row[key]):
        ids = fast(text, add_special_tokens=bos).input_ids + [fast.eos_token_id] * eod
        builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")
    return files(prefix)


def flags(corpus: Path, tokenizer: Path, out: Path) -> list[object]:
    kind = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tokenizer]
    return ["--input", corpus, "--output-prefix", out, *kind, "--workers", 2]


@pytest.mark.parametrize(
    ("more", "eod", "bos"),
    [
        (["--append-eod", "--partitions", 1, "--log-interval", 2], True, True),
        (["--tokenizer-hf-no-include-special-tokens"], False, False),
    ],
)
def test_bytes_are_megatrons(
    tmp_path: Path, corpus: Path, tokenizer: Path, more: list[object], eod: bool, bos: bool
) -> None:
    pytest.importorskip("megatron.core")
    done = tool(*flags(corpus, tokenizer, tmp_path / "my.corpus"), *more, fresh=eod)
    assert done.returncode == 0, done.stderr
    assert "3 documents" in done.stderr and "1 empty" in done.stderr
    ours = tmp_path / "my.corpus_text_document"
    assert files(ours) == theirs(tmp_path / "theirs", tokenizer, "text", eod, bos)
    assert verify(ours).documents == 3


def test_keys_and_patterns(tmp_path: Path, corpus: Path, tokenizer: Path) -> None:
    pytest.importorskip("megatron.core")
    lines = corpus.read_bytes().splitlines(keepends=True)
    (tmp_path / "part-1.jsonl").write_bytes(b"".join(lines[:2]))
    (tmp_path / "part-2.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[2:])))
    inputs = flags(tmp_path / "part-*.jsonl*", tokenizer, tmp_path / "c")
    done = tool(*inputs, "--json-keys", "text", "title", "--append-eod")
    assert done.returncode == 0, done.stderr
    for key in ("text", "title"):
        assert files(tmp_path / f"c_{key}_document") == theirs(tmp_path / f"theirs_{key}", tokenizer, key, eod=True)


@pytest.fixture(scope="module")
def files_of_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model and a tiktoken file of bytes."""
    folder, written = tmp_path_factory.mktemp("files"), BytesIO()
    options = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "minloglevel": 2}
    options |= {"vocab_size": 300, "hard_vocab_limit": False}
    texts = iter([row["text"].replace("\n", " ") for row in ROWS] * 20)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=texts, model_writer=written, **options)
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    rows = [base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256)]
    (folder / "ranks.model").write_bytes(b"".join(rows))
    return folder


def sequences(prefix: Path) -> list[list[int]]:
    indexed: Any = importlib.import_module("megatron.core.datasets.indexed_dataset")
    return [tokens.tolist() for tokens in indexed.IndexedDataset(str(prefix))]


def test_sentencepiece_and_tiktoken_files_give_the_librarys_ids(
    tmp_path: Path, corpus: Path, tokenizer: Path, files_of_libraries: Path
) -> None:
    """Without BOS, as Megatron's own SentencePiece tokenizer; a tiktoken file of bytes gives the bytes."""
    pytest.importorskip("megatron.core")
    texts = [row["text"] for row in ROWS if row["text"]]
    model = files_of_libraries / "tokenizer.model"
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ranks = ["--tokenizer-model", files_of_libraries / "ranks.model", "--tiktoken-scheme", "llama3"]
    cases = {
        "SentencePieceTokenizer": (["--tokenizer-model", model], [[*theirs.encode(text), 2] for text in texts]),
        "TikTokenizer": (ranks, [[*text.encode(), 257] for text in texts]),
    }
    for kind, (more, expected) in cases.items():
        inputs = flags(corpus, tokenizer, tmp_path / kind)
        done = tool(*inputs, "--append-eod", "--tokenizer-type", kind, *more)
        assert done.returncode == 0, done.stderr
        assert sequences(tmp_path / f"{kind}_text_document") == expected


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--tokenizer-type", "GPT2BPETokenizer"], "--tokenizer-type GPT2BPETokenizer: not supported; save it with"),
        (["--tokenizer-type", "TikTokenizer"], "a directory where TikTokenizer takes a file; give the file"),
        (["--tokenizer-type", "TikTokenizer", "--tokenizer-model", "vocab.json"], "JSON is not read as a TikTokenizer"),
        (["--tiktoken-scheme", "llama3"], "--tiktoken-scheme: not taken with --tokenizer-type HuggingFaceTokenizer"),
        (
            ["--tokenizer-type", "TikTokenizer", "--tokenizer-model", "t.model", "--tiktoken-scheme", "lama3"],
            "--tiktoken-scheme lama3: unknown; did you mean 'llama3'?",
        ),
        (["--tiktoken-pattern", "v2"], "--tiktoken-pattern: not taken here; name the split pattern and control tokens"),
        (["--partitions", 4], "--partitions 4: the input is cut into shards by itself; drop it"),
        (["--workers", 0], "--workers 0: expected 1 or more"),
        (["--json-keys", "body"], "corpus.jsonl:1: expected a string under 'body', no such key"),
        (["--input", "nowhere-*.jsonl"], "--input nowhere-*.jsonl: no such file"),
        (["--tokenizer-model", "nowhere"], "nowhere: no such file or directory; give a Hugging Face directory"),
        (
            ["--split-sentences", "--lang", "german", "--vocab-file", "v.json"],
            "--split-sentences, --lang, --vocab-file: not taken here; documents are tokenized whole: drop it; save it",
        ),
    ],
)
def test_what_it_does_not_do_is_told_in_a_line(
    tmp_path: Path, corpus: Path, tokenizer: Path, more: list[object], told: str
) -> None:
    done = tool(*flags(corpus, tokenizer, tmp_path / "c"), *more)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and told in line
    assert not list(tmp_path.iterdir())


def test_help_says_what_there_is() -> None:
    done = tool("--help")
    assert done.returncode == 0
    for flag in ("--input", "--json-keys", "--output-prefix", "--tokenizer-type", "--append-eod", "--workers"):
        assert flag in done.stdout
    assert "--split-sentences" not in done.stdout
