"""What a run shows: its log, and on a terminal a bar with the time that is left."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Show = Callable[[int, float], None]


def log_to_console(*, is_main: bool) -> None:
    """The main rank's log, in lines of 120 characters where no terminal is; of other ranks errors alone."""
    rich.reconfigure(width=None if sys.stdout.isatty() else 120)
    handler = RichHandler(console=rich.get_console(), show_path=False, show_level=False, log_time_format="%X")
    logging.basicConfig(level=logging.INFO if is_main else logging.ERROR, format="%(message)s", handlers=[handler])


@contextmanager
def shown(
    iteration: int,
    train_iters: int,
    *,
    is_main: bool,
    console: Console | None = None,
    get_time: Callable[[], float] | None = None,
) -> Iterator[Show]:
    """What it gives is told each step's number and loss.  Nothing is shown on other ranks, or where no terminal is.

    It shares rich's console with the log, whose lines scroll above it.  `get_time` is a clock for tests [s].
    """
    console = console or rich.get_console()
    if not (is_main and console.is_terminal):
        yield lambda step, loss: None
        return
    columns = (
        TextColumn("train"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, get_time=get_time) as bar:
        task = bar.add_task("train", total=train_iters, completed=iteration, loss=float("nan"))

        def show(step: int, loss: float) -> None:
            bar.update(task, completed=step, loss=loss)

        yield show
