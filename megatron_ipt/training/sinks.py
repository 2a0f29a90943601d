"""Where the lines of metrics.jsonl go besides the file: TensorBoard, Weights & Biases.  Both show what is in the file.

Each number of a line is a curve over iterations, named by its kind and its place: `train/loss`, `train/skipped/spike`,
`train/sources/domain/loss`, `validation/held_out/bits_per_byte`.  TensorBoard hides the points after the iteration that
a run goes on from, as the file does, and all of them where it starts anew.  Weights & Biases keeps what it has: a run
that goes on adds its points to it, and one that starts anew is another run there.

A library is imported only where a setting asks for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from data_prep.errors import UserError
from megatron_ipt.settings import TrainSettings


class Sink(Protocol):
    def write(self, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def check(train: TrainSettings) -> None:
    """UserError for a library that is asked for and not installed.  All ranks call it: all end."""
    for setting, library in (("tensorboard_dir", "tensorboard"), ("wandb_project", "wandb")):
        if getattr(train, setting) is not None and importlib.util.find_spec(library) is None:
            mend = f"pip install {library}, or leave the setting out: metrics.jsonl has it all"
            raise UserError(f"train.{setting}", f"{library} is not installed", mend)


def asked_for(train: TrainSettings, name: str, folder: Path, resumed_from: int) -> list[Sink]:
    """The sinks of a run called `name`; `folder` is for what they write besides.  For the main rank."""
    found: list[Sink] = []
    if train.tensorboard_dir is not None:
        found.append(TensorBoard(train.tensorboard_dir, resumed_from))
    if train.wandb_project is not None:
        found.append(WeightsAndBiases(train.wandb_project, name, folder, resumed_from))
    return found


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line by the name of their curve; the iteration is the axis, not a curve."""
    kind, name = row["kind"], row.get("name")
    rest = {key: value for key, value in row.items() if key not in ("kind", "name", "iteration")}
    return dict(_numbers(f"{kind}/{name}" if name else kind, rest))


def _numbers(place: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{place}/{key}", value)
        elif isinstance(value, int | float):
            yield f"{place}/{key}", float(value)


class TensorBoard:
    """Event files in a folder."""

    def __init__(self, folder: Path, resumed_from: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resumed_from + 1 if resumed_from else 0)

    def write(self, row: Mapping[str, Any]) -> None:
        for name, value in scalars(row).items():
            self._writer.add_scalar(name, value, row["iteration"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of a project: its id stands in wandb_id.txt in `folder`, so that a resumed run goes on in the same one.

    The axis is `iteration`, not the library's own step, which drops what does not rise.
    """

    def __init__(self, project: str, name: str, folder: Path, resumed_from: int) -> None:
        """UserError where the library does not start."""
        wandb = importlib.import_module("wandb")  # in no extra: who asks for it has it
        known = folder / "wandb_id.txt"
        if not (resumed_from and known.exists()):
            known.parent.mkdir(parents=True, exist_ok=True)
            known.write_text(secrets.token_hex(4), encoding="utf-8")
        run_id = known.read_text(encoding="utf-8")
        try:
            self._run = wandb.init(project=project, id=run_id, name=name, resume="allow", dir=str(folder))
        except wandb.Error as error:
            mend = "run `wandb login`, or set WANDB_MODE=offline and `wandb sync` the run later"
            raise UserError("train.wandb_project", f"wandb does not start ({error})", mend) from error
        self._run.define_metric("*", step_metric="iteration")

    def write(self, row: Mapping[str, Any]) -> None:
        self._run.log({**scalars(row), "iteration": row["iteration"]})

    def close(self) -> None:
        self._run.finish()
