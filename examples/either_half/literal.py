#!/usr/bin/env python3
"""Texts that mention `<|end_of_text|>`, as a page about tokenizers does: where does a document end?

    python examples/either_half/literal.py
    MEGATRON_LM=path/to/Megatron-LM python examples/either_half/literal.py      through its own preprocess_data.py

Megatron-LM's preprocess_data.py takes what the tokenizer gives for a text, and a tokenizer reads its control tokens in
any text it is given; without a checkout the same is done here by the same classes.  `ipt data index` spells them out.
Both datasets are then read by megatron-core's GPTDataset, which starts a document after each end-of-document token.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from sides import megatron, table
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data_prep.indexing import index
from data_prep.indexing.reader import IndexedDatasetReader
from data_prep.settings import IndexSettings

END = "<|end_of_text|>"
TEXTS = [
    "A document is a text that somebody wrote. It ends where its author stopped.",
    f"In this vocabulary the text ends with {END}. A model that writes {END} is done, and its text ends here.",
    f"To join documents, put {END} between them: first{END}second{END}third.",
    "A page that mentions no token of the vocabulary ends once, as every page should.",
]
COPIES = 25


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = train_tokenizer(folder / "tokenizer")
        corpus = folder / "corpus.jsonl"
        rows = ({"id": f"{copy}-{n}", "text": text} for copy in range(COPIES) for n, text in enumerate(TEXTS))
        corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        index(IndexSettings(append_eod=True), [corpus], folder / "tokenizer", folder / "ours")
        prefixes = (preprocess(corpus, folder, tokenizer), folder / "ours")
        found = [count(prefix, tokenizer, folder / f"cache_{prefix.name}") for prefix in prefixes]
    texts, ends, documents, lost = zip(*found, strict=True)
    table(
        f"{COPIES * len(TEXTS)} texts, {COPIES * sum(text.count(END) for text in TEXTS)} mentions of `{END}`",
        [
            ("documents in the .idx", *texts),
            ("end-of-document tokens in the .bin", *ends),
            ("documents as a trainer sees them, positions starting at 0", *documents),
            ("of them, cut off inside of a text", *lost),
        ],
    )


def train_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A small byte-level BPE tokenizer whose end of text is a control token, as that of any released model."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r" ?\p{L}+| ?[^\s\p{L}]+|\s+"), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    made.save_pretrained(folder)
    return made


def preprocess(corpus: Path, folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The dataset that Megatron-LM's preprocess_data.py makes, through it or through what it calls."""
    prefix = folder / "theirs_text_document"
    checkout = os.environ.get("MEGATRON_LM")
    if checkout:
        kind = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", folder / "tokenizer"]
        files = ["--input", corpus, "--output-prefix", folder / "theirs"]
        script = [sys.executable, Path(checkout) / "tools" / "preprocess_data.py"]
        command = map(str, [*script, *files, *kind, "--append-eod", "--workers", 1])
        subprocess.run(list(command), check=True, capture_output=True, env={**os.environ, "PYTHONPATH": checkout})
        return prefix
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(len(tokenizer)))
    for line in corpus.read_text(encoding="utf-8").splitlines():
        ids = [*tokenizer(json.loads(line)["text"]).input_ids, tokenizer.eos_token_id]
        builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")
    return prefix


def count(prefix: Path, tokenizer: PreTrainedTokenizerFast, cache: Path) -> tuple[int, int, int, int]:
    """Documents, EOD tokens, documents as GPTDataset starts positions anew, and those of them that end inside a text.

    The whole dataset is one sequence of GPTDataset, so that none is cut by the end of a sequence.
    """
    reader = IndexedDatasetReader(prefix)
    eod = tokenizer.eos_token_id
    ends = sum(int((reader.document(number) == eod).sum()) for number in range(reader.documents))
    whole = megatron([prefix], None, 1, reader.tokens - 1, cache, eod=eod, reset_position_ids=True)[0]
    starts = int((whole["position_ids"] == 0).sum())
    return reader.documents, ends, starts, starts - reader.documents


if __name__ == "__main__":
    main()
