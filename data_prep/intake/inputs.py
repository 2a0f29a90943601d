"""What the user names -> what is read, in order: files, folders, globs and datasets, all of them looked at first.

The whole call is refused, by one UserError, for an input that is not there or that nothing here reads.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from data_prep.errors import UserError
from data_prep.intake.drops import Placed, Row, dropped
from data_prep.intake.hugging_face import SCHEME, Opened, is_hub_name, is_saved, open_hub, open_saved
from data_prep.intake.lines import BYTE_ORDER_MARK, line_rows, text_file
from data_prep.intake.tables import parquet_rows
from data_prep.readers import SIGNATURES
from data_prep.settings import IntakeSettings

LINES: Final = tuple(kind + packed for kind in (".jsonl", ".json", ".ndjson") for packed in ("", ".gz", ".zst"))
"""Ends of names of files with one JSON object a line."""
READ: Final = (*LINES, ".parquet", ".txt")
_MEND = f"these are read: {', '.join(READ)}, folders of such files, and Hugging Face datasets"
_NAMED = re.compile(r"([\w.-]+)=(.+)")


@dataclass(frozen=True, slots=True)
class Input:
    """One file or dataset: the name of its corpus, how its rows are read, and whether they come from JSON."""

    source: str
    rows: Opened
    is_json: bool


def find_inputs(inputs: Sequence[Path | str], settings: IntakeSettings) -> list[Input]:
    """All that is to be read, in the order of `inputs`; the files of a folder or a glob by name.

    Errors: a UserError for an input that is missing or of a kind that is not read, a glob without a match, a folder
    without a file that is read, an unknown split or name of the hub.
    """
    found: list[Input] = []
    for given in inputs:
        source, place = _source_and_place(str(given), settings.source)
        found += _find(place, source, settings)
    if not found:
        raise UserError("inputs", "there are none", "name a file, a folder or a dataset")
    return found


def paths_of(given: Path | str) -> list[Path]:
    """The paths on this machine that an input names, without its NAME=, a glob's matches each; none of the hub's."""
    _, place = _source_and_place(str(given), "")
    return [Path(place)] if Path(place).exists() else _matches(place)


def check_place(out: Path, inputs: Sequence[Path | str]) -> None:
    """What is written stands in no input.

    Errors: a UserError where a folder stands at `out`, or it is one of the inputs or in a folder that is.
    """
    if out.is_dir():
        raise UserError(out, "a folder stands there", "name a file")
    for path in (path for given in inputs for path in paths_of(given)):
        if out.exists() and path.samefile(out):
            raise UserError(out, "is one of the inputs, which it would replace", "name another file")
        if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
            raise UserError(out, f"is in {path}, which is read", "name a file outside of it")


def name_of(given: Path | str) -> str:
    """What an input is called before its `=`; nothing without."""
    return _source_and_place(str(given), "")[0]


def _source_and_place(given: str, default: str) -> tuple[str, str]:
    """NAME=PATH in its parts, unless it is a path itself: folders are called lang=en."""
    named = _NAMED.fullmatch(given)
    if named is None or os.path.lexists(given) or _matches(given):
        return default, given
    return named[1], named[2]


def _find(place: str, source: str, settings: IntakeSettings) -> Iterator[Input]:
    path = Path(place)
    if path.exists():
        yield from _at(path, source, settings)
    elif place.startswith(SCHEME) or (is_hub_name(place) and not place.endswith(READ)):
        yield Input(source, open_hub(place, settings.split, settings.max_document_bytes), is_json=False)
    elif glob.has_magic(place):
        matches = _matches(place)
        if not matches:
            raise UserError(place, "nothing matches", "look into its folder")
        for match in matches:
            yield from _at(match, source, settings)
    else:
        raise UserError(place, "no such file", _MEND)


def _matches(pattern: str) -> list[Path]:
    if not glob.has_magic(pattern):
        return []
    return sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - Path.glob takes relative ones only


def _at(path: Path, source: str, settings: IntakeSettings) -> Iterator[Input]:
    """What is read at a path that was named."""
    if not path.is_dir():
        if not path.name.endswith(READ):
            raise UserError(path, "a file of a kind that is not read", _MEND)
        yield _file(path, source, settings)
        return
    found = list(_inside(path, source, settings, frozenset()))
    if not any(isinstance(one, Input) for one in found):
        raise UserError(path, "nothing in this folder is read", _MEND)
    for one in found:
        yield one if isinstance(one, Input) else Input(source, partial(_not_read, one), is_json=True)


def _inside(folder: Path, source: str, settings: IntakeSettings, above: frozenset[Path]) -> Iterator[Input | Path]:
    """The inputs in a folder and in those inside it, by name, and the files of other kinds; hidden files are left."""
    if is_saved(folder):
        opened = open_saved(folder, spelled(folder), settings.split, settings.max_document_bytes)
        yield Input(source, opened, is_json=False)
        return
    here = above | {folder.resolve()}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield _file(path, source, settings) if path.name.endswith(READ) else path
        elif path.resolve() not in here:  # a link may lead to a folder above it
            yield from _inside(path, source, settings, here)


def _file(path: Path, source: str, settings: IntakeSettings) -> Input:
    """Errors: a UserError for a file that cannot be opened, or that is not what its name says."""
    if not path.is_file():
        raise UserError(path, "not a file", _MEND)
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "look at its permissions") from error
    if path.name.endswith(LINES) and path.suffix not in (".gz", ".zst"):
        for signature, (problem, mend) in SIGNATURES.items():
            if start.startswith(signature) and signature != BYTE_ORDER_MARK:
                raise UserError(path, f"the file {problem}", mend)
    return Input(source, partial(_file_rows, path, settings), is_json=path.suffix != ".parquet")


def _file_rows(path: Path, settings: IntakeSettings) -> Iterator[Placed[Row]]:
    name, limit = spelled(path), settings.max_document_bytes
    if path.stat().st_size == 0:
        return iter([dropped(name, "empty_file", "it has no bytes")])
    if path.suffix == ".parquet":
        return parquet_rows(path, name, limit)
    if path.suffix == ".txt":
        return iter([text_file(path, name, limit, settings.text_key)])
    return line_rows(path, name, limit)


def _not_read(path: Path) -> Iterator[Placed[Row]]:
    return iter([dropped(spelled(path), "other_kind", "a file of a kind that is not read")])


def spelled(path: Path | str) -> str:
    """A path as text that UTF-8 can hold, whatever bytes its name has."""
    return os.fsencode(path).decode(errors="backslashreplace")
