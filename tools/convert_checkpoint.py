#!/usr/bin/env python3
"""A Hugging Face directory as a sharded checkpoint, or back, by the flags of Megatron-LM's tools/checkpoint/convert.py.

    tools/convert_checkpoint.py --model-type GPT --loader llama_mistral --saver mcore --bf16 \\
        --load-dir path/to/hf --save-dir checkpoints
    tools/convert_checkpoint.py --model-type GPT --loader mcore --saver hf --load-dir checkpoints --save-dir path/to/new

The first is `ipt convert import`, the second `ipt convert export`, which writes bf16.  Sizes come from config.json or
from the checkpoint; a checkpoint loads in any parallel layout, so there is none to give.  `ipt convert parity` then
tells whether both are one model.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import megatron_flags

from data_prep.errors import UserError

logger = logging.getLogger("convert_checkpoint")

HF = {"hf", "llama", "llama_hf", "llama_mistral"}
CHECKPOINT = {"core", "mcore"}
_LAYOUT = "a checkpoint loads in any layout: drop it"
_READ = "read from config.json: drop it"
_PADDING = "the vocabulary is padded by the run's recipe: drop it"
_NO_QUEUE = "there is one process and no queue: drop it"
REFUSED = {
    "--target-tensor-parallel-size": _LAYOUT,
    "--target-pipeline-parallel-size": _LAYOUT,
    "--target-expert-parallel-size": _LAYOUT,
    "--loader-transformer-impl": _LAYOUT,
    "--saver-transformer-impl": _LAYOUT,
    "--model-size": _READ,
    "--true-vocab-size": _READ,
    "--vocab-file": _READ,
    "--make-vocab-size-divisible-by": _PADDING,
    "--megatron-path": "megatron-core is the installed one: drop it",
    "--max-queue-size": _NO_QUEUE,
    "--no-checking": _NO_QUEUE,
    "--fp16": "give --bf16, or neither for fp32",
}


def command_line() -> argparse.ArgumentParser:
    parser = megatron_flags.parser_of(__doc__ or "", REFUSED)
    add = parser.add_argument
    add("--model-type", required=True, help="GPT")
    add("--loader", required=True, help=f"{', '.join(sorted(HF))} for Hugging Face; {', '.join(sorted(CHECKPOINT))}")
    add("--saver", required=True, help="the other of the two")
    add("--load-dir", type=Path, required=True, help="directory to read")
    add("--save-dir", type=Path, required=True, help="directory to write")
    add("--checkpoint-type", default="hf", help="hf, the only one")
    add("--bf16", action="store_true", help="write a checkpoint's weights in bf16 (default: fp32)")
    add("--tokenizer-model", type=Path, help="to Hugging Face: directory whose tokenizer and config.json are kept")
    return parser


def main(arguments: argparse.Namespace) -> None:
    if arguments.model_type != "GPT":
        raise UserError(f"--model-type {arguments.model_type}", "not supported", "give GPT")
    if arguments.checkpoint_type != "hf":
        mend = "convert it to a Hugging Face directory with transformers first"
        raise UserError(f"--checkpoint-type {arguments.checkpoint_type}", "not supported", mend)
    for flag, name in (("--loader", arguments.loader), ("--saver", arguments.saver)):
        if name not in HF | CHECKPOINT:
            raise UserError(f"{flag} {name}", "not supported", f"legal: {', '.join(sorted(HF | CHECKPOINT))}")
    if (arguments.loader in HF) == (arguments.saver in HF):
        where = f"--loader {arguments.loader} --saver {arguments.saver}"
        raise UserError(where, "both name the same side", "one is Hugging Face's (hf), the other ours (mcore)")
    if arguments.loader in HF:
        to_checkpoint(arguments)
    else:
        to_hf(arguments)


def to_checkpoint(arguments: argparse.Namespace) -> None:
    tokenizer = arguments.tokenizer_model
    if tokenizer is not None and tokenizer.resolve() != arguments.load_dir.resolve():
        raise UserError(f"--tokenizer-model {tokenizer}", "a checkpoint holds no tokenizer", "drop it")
    from megatron_ipt.convert.import_hf import import_hf

    logger.info("wrote %s", import_hf(arguments.load_dir, arguments.save_dir, bf16=arguments.bf16))


def to_hf(arguments: argparse.Namespace) -> None:
    from megatron_ipt.convert.export_hf import export_hf

    changed = export_hf(arguments.load_dir, arguments.save_dir, arguments.tokenizer_model)
    logger.info("wrote %s", arguments.save_dir)
    for name, (before, after) in changed.items():
        logger.info("config.json: %s %s -> %s", name, before, after)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    megatron_flags.run(command_line(), REFUSED, main)
