"""Datasets of the library `datasets`: a folder that `save_to_disk` wrote, and a name of the hub, which is streamed.

Rows are taken as Arrow has them: nothing is decoded, an image stays the bytes it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_prep.errors import UserError, nearest
from data_prep.intake.drops import Placed, Row, dropped
from data_prep.intake.tables import batch_rows

SCHEME = "hf://"
# OWNER/NAME of the hub, with the name of a configuration behind a colon; one of the hub's own has no owner.
_NAME = re.compile(r"(?:[\w.-]+/)?[\w.-]+(?::[\w.-]+)?")
# Rows that are taken from a dataset at once.
_BATCH_ROWS = 128

type Opened = Callable[[], Iterator[Placed[Row]]]
"""Reads the rows of a dataset that is open."""


def is_hub_name(text: str) -> bool:
    """Whether it reads as OWNER/NAME or OWNER/NAME:CONFIGURATION, or has hf:// before it."""
    return text.startswith(SCHEME) or (text.count("/") == 1 and _NAME.fullmatch(text) is not None)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    parts = ("dataset_dict.json",), ("state.json", "dataset_info.json")
    return any(all((folder / name).is_file() for name in names) for names in parts)


def open_saved(folder: Path, name: str, split: str, limit: int) -> Opened:
    """The rows of a saved dataset, of several splits those of `split`; one drop if it is broken.

    Errors: a UserError for a split that there is not.
    """
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
            raise  # the system's fault
        told = dropped(name, "broken_file", error)
        return lambda: iter([told])
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise UserError(folder, f"there is no split '{split}'", nearest(split, found))
        found = found[split]
    return lambda: _rows(found, name, limit)


def open_hub(text: str, split: str, limit: int) -> Opened:
    """The rows of a dataset of the hub, streamed.

    Errors: a UserError for a name, a configuration or a split that there is not, or a hub that is not reached.
    """
    mend = "give OWNER/NAME or OWNER/NAME:CONFIGURATION of a Hugging Face dataset, or the path of a file or folder"
    name = text.removeprefix(SCHEME)
    if _NAME.fullmatch(name) is None:
        raise UserError(text, "not a name of the hub", mend)
    import datasets

    repository, _, configuration = name.partition(":")
    try:
        found = datasets.load_dataset(repository, configuration or None, split=split, streaming=True)
    except Exception as error:  # whatever the library and its transports raise: it is told in their words
        problem = f"there is no such file, nor split '{split}' of such a dataset on the hub ({error})"
        raise UserError(text, problem, mend) from error
    return lambda: _rows(found, name, limit)


def _rows(dataset: Any, name: str, limit: int) -> Iterator[Placed[Row]]:
    """(NAME:ROW, object or drop), and one drop where no more can be read."""
    number = 0
    tables = dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS)
    while True:
        try:
            table = next(tables, None)
        except Exception as error:  # a stream may end by any fault of the network and of the files behind it
            yield dropped(f"{name}:{number + 1}", "broken_file", f"{type(error).__name__}: {error}")
            return
        if table is None:
            break
        for batch in table.to_batches():
            yield from batch_rows(batch, name, number + 1, limit)
            number += batch.num_rows
    if number == 0:
        yield dropped(name, "empty_file", "there is no row in it")
