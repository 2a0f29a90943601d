#!/usr/bin/env python3
"""JSONL -> PREFIX_text_document.bin and .idx, by the flags of Megatron-LM's script of this name, through our indexing.

    tools/preprocess_data.py --input corpus.jsonl --output-prefix data/corpus --append-eod --workers 8 \\
        --tokenizer-type HuggingFaceTokenizer --tokenizer-model path/to/tokenizer

    tools/preprocess_data.py ... --tokenizer-type SentencePieceTokenizer --tokenizer-model path/to/tokenizer.model
    tools/preprocess_data.py ... --tokenizer-type TikTokenizer --tokenizer-model path/to/tokenizer.model \\
        --tiktoken-scheme llama3

As with Megatron, SentencePiece and tiktoken files put no BOS before a text; `ipt data index` does by the model's rule.

What differs: a control token spelled in a text stays text, blank texts are dropped and counted, each dataset gets a
manifest and its lineage beside it, and the order of the input is kept.
"""

from __future__ import annotations

import argparse
import glob
import logging
import os
import sys
from pathlib import Path
from typing import get_args

import megatron_flags

from data_prep.errors import UserError, nearest
from data_prep.settings import IndexSettings, TiktokenScheme

logger = logging.getLogger("preprocess_data")

TOKENIZER, TIKTOKEN = "HuggingFaceTokenizer", "TikTokenizer"
FILES = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer", TIKTOKEN)
_CONVERT = f"save it with transformers' save_pretrained and give the directory, with --tokenizer-type {TOKENIZER}"
_SCHEME = "name the split pattern and control tokens by --tiktoken-scheme"
_WHOLE = "documents are tokenized whole: drop it"
_SEARCH = "--workers is a number of threads, with nothing to search: drop it"
REFUSED = {
    "--split-sentences": _WHOLE,
    "--keep-newlines": _WHOLE,
    "--lang": _WHOLE,
    "--find-optimal-num-workers": _SEARCH,
    "--workers-to-check": _SEARCH,
    "--max-documents": _SEARCH,
    "--performance-dir": _SEARCH,
    "--vocab-file": _CONVERT,
    "--merge-file": _CONVERT,
    "--tiktoken-pattern": _SCHEME,
    "--tiktoken-num-special-tokens": _SCHEME,
    "--tokenizer-sentencepiece-legacy": "control tokens in a text stay text: drop it",
    "--vocab-size": "the tokenizer's own is taken: drop it",
    "--special-tokens": "add them to the tokenizer's directory",
    "--tokenizer-hf-no-use-fast": "tokenizer.json is read: drop it",
    "--trust-remote-code": "no code of a tokenizer's directory is run: drop it",
}


def command_line() -> argparse.ArgumentParser:
    parser = megatron_flags.parser_of(__doc__ or "", REFUSED)
    add = parser.add_argument
    add("--input", required=True, help="JSONL (.gz, .zst too), or a quoted pattern that fits such files")
    add("--json-keys", nargs="+", default=["text"], help="keys of texts, a dataset each (default: text)")
    add("--output-prefix", type=Path, required=True, help="writes PREFIX_KEY_document.bin, .idx, manifest and lineage")
    add("--tokenizer-type", required=True, help=", ".join((TOKENIZER, *FILES)))
    add(
        "--tokenizer-model",
        type=Path,
        required=True,
        help=f"{TOKENIZER}: directory with a tokenizer.json; the others: a SentencePiece or tiktoken file",
    )
    add("--tiktoken-scheme", help=f"{TIKTOKEN}: {', '.join(get_args(TiktokenScheme))}")
    add("--append-eod", action="store_true", help="end each document with the tokenizer's EOS token")
    add(
        "--tokenizer-hf-no-include-special-tokens",
        action="store_true",
        help="no BOS, even where the tokenizer's own rule sets one",
    )
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: as many as cores)")
    add("--partitions", type=int, default=1, help="1: the input is cut into shards by itself")
    add("--keep-sequential-samples", action="store_true", help="so it is always: the order of the input is kept")
    add("--log-interval", type=int, default=1000, help="documents between two lines of progress (default: 1000)")
    return parser


def main(arguments: argparse.Namespace) -> None:
    check_tokenizer_flags(arguments.tokenizer_type, arguments.tokenizer_model, arguments.tiktoken_scheme)
    if arguments.partitions != 1:
        mend = "drop it; --workers sets the number of processes"
        raise UserError(f"--partitions {arguments.partitions}", "the input is cut into shards by itself", mend)
    for flag, value in (("--workers", arguments.workers), ("--log-interval", arguments.log_interval)):
        if value < 1:
            raise UserError(f"{flag} {value}", "expected 1 or more", "give a positive number")
    from data_prep.indexing import index

    inputs = input_files(arguments.input)
    no_bos = arguments.tokenizer_hf_no_include_special_tokens or arguments.tokenizer_type in FILES
    for key in arguments.json_keys:
        settings = IndexSettings(
            append_eod=arguments.append_eod,
            prepend_bos=False if no_bos else None,
            tiktoken_scheme=arguments.tiktoken_scheme,
            text_key=key,
            workers=arguments.workers,
        )
        prefix = arguments.output_prefix.with_name(f"{arguments.output_prefix.name}_{key}_document")
        manifest = index(settings, inputs, arguments.tokenizer_model, prefix, Progress(arguments.log_interval))
        dropped = ", ".join(f"{count} {reason}" for reason, count in manifest.dropped.items())
        logger.info("%s: %d documents, %d tokens; dropped: %s", prefix, manifest.documents, manifest.tokens, dropped)


def check_tokenizer_flags(kind: str, model: Path, scheme: str | None) -> None:
    """Refuses a type we cannot be exact for, a scheme without a tiktoken file, and Megatron's own format of ranks."""
    if kind not in (TOKENIZER, *FILES):
        raise UserError(f"--tokenizer-type {kind}", "not supported", _CONVERT)
    if kind in FILES and model.is_dir():
        raise UserError(f"--tokenizer-model {model}", f"a directory where {kind} takes a file", "give the file")
    if kind in FILES and model.suffix == ".json":
        mend = f"give a SentencePiece or tiktoken file, or its directory with --tokenizer-type {TOKENIZER}"
        raise UserError(f"--tokenizer-model {model}", f"JSON is not read as a {kind}", mend)
    if scheme is not None and kind != TIKTOKEN:
        raise UserError("--tiktoken-scheme", f"not taken with --tokenizer-type {kind}", "drop it")
    if scheme is not None and scheme not in get_args(TiktokenScheme):
        raise UserError(f"--tiktoken-scheme {scheme}", "unknown", nearest(scheme, get_args(TiktokenScheme)))


def input_files(pattern: str) -> list[Path]:
    """The file of that name, or the files that the pattern fits, sorted by name."""
    found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern))  # noqa: PTH207
    if not found:
        raise UserError(f"--input {pattern}", "no such file", "give a JSONL file, or a quoted pattern that fits some")
    return [Path(name) for name in found]


class Progress:
    """Counts documents, and says so every `interval` of them."""

    def __init__(self, interval: int) -> None:
        self.interval, self.documents = interval, 0

    def __call__(self, more: int) -> None:
        before, self.documents = self.documents, self.documents + more
        if self.documents // self.interval > before // self.interval:
            logger.info("%d documents", self.documents)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    megatron_flags.run(command_line(), REFUSED, main)
