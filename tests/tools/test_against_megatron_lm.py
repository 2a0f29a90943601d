"""tools/preprocess_data.py beside Megatron-LM's own script of that name, which is an argument:

    MEGATRON_LM=path/to/Megatron-LM TOKENIZER=path/to/tokenizer pytest tests/tools/test_against_megatron_lm.py

It is not part of megatron-core's wheel, and never of this repository.  Without it its work is done here by its own
classes: transformers' ids, put one document after the other into IndexedDatasetBuilder.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.indexing.reader import IndexedDatasetReader

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "data_prep"))
from tokenizers_for_tests import WORDS, llama3_like  # noqa: E402

PLAIN = [*WORDS, "x", "Two  blanks,\ttabs\r\nand \u00e9 \U0001f642 in a line.\n\n\n", "1234567 " * 50]
LITERAL = ["It ends <|end|> here.", "<|begin|>Twice<|end|><|end|>", "a<|end|>b"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = os.environ.get("TOKENIZER")
    return Path(chosen) if chosen else llama3_like(tmp_path_factory.mktemp("tokenizer"))


def ours(corpus: Path, tokenizer: Path, out: Path) -> Path:
    script = [sys.executable, ROOT / "tools" / "preprocess_data.py", *flags(corpus, tokenizer, out / "ours")]
    subprocess.run(list(map(str, script)), check=True, capture_output=True)
    return out / "ours_text_document"


def theirs(corpus: Path, tokenizer: Path, out: Path) -> Path:
    """Megatron-LM's script where it is, else what it does."""
    checkout = os.environ.get("MEGATRON_LM")
    prefix = out / "theirs_text_document"
    if checkout:
        script = [sys.executable, Path(checkout) / "tools" / "preprocess_data.py"]
        command = list(map(str, [*script, *flags(corpus, tokenizer, out / "theirs")]))
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": checkout})
        return prefix
    indexed: Any = importlib.import_module("megatron.core.datasets.indexed_dataset")
    fast = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    builder = indexed.IndexedDatasetBuilder(f"{prefix}.bin", dtype=indexed.DType.optimal_dtype(len(fast)))
    for line in corpus.read_text().splitlines():
        ids = [*fast(json.loads(line)["text"]).input_ids, fast.eos_token_id]
        builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")
    return prefix


def flags(corpus: Path, tokenizer: Path, prefix: Path) -> list[object]:
    kind = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tokenizer]
    return ["--input", corpus, "--output-prefix", prefix, *kind, "--append-eod", "--workers", 1]


def both(tmp_path: Path, tokenizer: Path, texts: list[str]) -> tuple[Path, Path]:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return ours(corpus, tokenizer, tmp_path), theirs(corpus, tokenizer, tmp_path)


def test_plain_text_gives_the_same_bytes(tmp_path: Path, tokenizer: Path) -> None:
    mine, other = both(tmp_path, tokenizer, PLAIN * 20)
    for suffix in (".bin", ".idx"):
        assert Path(f"{mine}{suffix}").read_bytes() == Path(f"{other}{suffix}").read_bytes()


def test_text_with_literal_control_tokens_differs_at_those_and_nowhere_else(tmp_path: Path, tokenizer: Path) -> None:
    fast = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    begin, end = fast.bos_token, fast.eos_token
    literal = [text.replace("<|begin|>", begin).replace("<|end|>", end) for text in LITERAL]
    mine, other = (IndexedDatasetReader(prefix) for prefix in both(tmp_path, tokenizer, [*PLAIN, *literal]))
    control = {fast.bos_token_id, fast.eos_token_id}
    for number in range(len(PLAIN)):
        assert np.array_equal(mine.document(number), other.document(number))
    for number, text in enumerate(literal, len(PLAIN)):
        here, there = mine.document(number).tolist(), other.document(number).tolist()
        assert not control & set(here[1:-1])
        assert sum(token in control for token in there[1:-1]) == text.count(begin) + text.count(end)
        assert fast.decode(here[1:-1]) == fast.decode(there[1:-1]) == text
        same_before = next(place for place, (a, b) in enumerate(zip(here, there, strict=False)) if a != b)
        first = min(text.index(name) for name in (begin, end) if name in text)
        # A token may reach one character over the border of the literal, no more.
        assert len(fast.decode(here[1:same_before])) >= first - 1
