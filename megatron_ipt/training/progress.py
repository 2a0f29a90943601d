"""How far training is: a bar with the time that is left, on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Show = Callable[[int, float], None]


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
