"""The files of an exported model beside its weights, and what may be deleted where it is to stand."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from data_prep.errors import UserError

TOKENIZER: Final = (
    *("tokenizer*", "*.model", "*.tiktoken", "tekken.json", "vocab.*", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template*", "additional_chat_templates"),
)
"""Files of a tokenizer."""
COPIED: Final = ("generation_config.json", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
"""What is kept of the source beside config.json and the tokenizer: how to generate, and under which terms."""
WRITTEN: Final = ("config.json", "model*.safetensors", "model.safetensors.index.json")


def check_replaceable(out: Path, checkpoint: Path, read: Sequence[Path]) -> None:
    """UserError unless nothing stands at `out`, or an earlier export alone: what stands there is deleted.

    Nor may it be within `checkpoint`, whose files are listed and no other may be there.
    """
    place = out.resolve()
    for path in read:
        if path.resolve().is_relative_to(place):
            raise UserError(out, f"is or holds {path}, which is read", "export into another directory")
    if place.is_relative_to(checkpoint.resolve()):
        raise UserError(out, f"is within the checkpoint {checkpoint}", "export into another directory")
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(out, "is a file", "give a directory that is not there yet")
    foreign = sorted(path.name for path in out.iterdir() if not _is_one_of(path, WRITTEN + TOKENIZER + COPIED))
    if foreign:
        problem = f"is there and holds what no export writes ({', '.join(foreign[:3])})"
        raise UserError(out, problem, "give a directory that is not there yet, or remove it yourself")


def _is_one_of(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in patterns)


def copy(source: Path, folder: Path, patterns: Sequence[str]) -> None:
    """The files and folders of `source` whose names are of `patterns`; where it is one file, that."""
    if source.is_file():
        shutil.copyfile(source, folder / ("tokenizer.json" if source.suffix == ".json" else source.name))
        return
    for path in sorted(source.iterdir()):
        if _is_one_of(path, patterns):
            if path.is_dir():
                shutil.copytree(path, folder / path.name)
            else:
                shutil.copyfile(path, folder / path.name)
