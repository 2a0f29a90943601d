"""What stands between a rank and whoever started it: the process group, and the line that tells a failure."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.readers import DISK_FULL
from megatron_ipt.recipe import Recipe


def start(recipe: Recipe, train: Callable[[Recipe], Any]) -> None:
    """Join the process group and `train`; a full disk becomes a UserError."""
    from megatron_ipt.mcore import parallel

    try:
        with parallel.distributed():
            train(recipe)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        where = error.filename or recipe.output_dir
        raise UserError(where, "the disk is full", "make room and start again: the last checkpoint is whole") from error


def tell(error: UserError) -> None:
    """One line: to `ipt train` through the file it named (the first rank to fail), else on stderr with the rank."""
    target = os.environ.get("IPT_ERROR_FILE")
    if target:
        with contextlib.suppress(FileExistsError), Path(target).open("x", encoding="utf-8") as file:
            file.write(str(error))
    else:
        rank = os.environ.get("RANK", "0")
        sys.stderr.write(f"error: {error}\n" if rank == "0" else f"error on rank {rank}: {error}\n")
