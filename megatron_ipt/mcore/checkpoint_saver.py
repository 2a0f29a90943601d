"""When and in which form a run saves: now or behind training, for any layout or for its own, and what is kept.

A run has one `Saver`.  All ranks call each of its functions together.
"""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from megatron.core.optimizer import MegatronOptimizer

from data_prep.errors import UserError
from megatron_ipt.mcore import checkpoint as checkpoints
from megatron_ipt.mcore import parallel
from megatron_ipt.mcore.checkpoint_async import Pending
from megatron_ipt.mcore.checkpoint_folder import folder_of, not_kept, remove
from megatron_ipt.mcore.checkpoint_lock import give_back, locked
from megatron_ipt.mcore.run_card import DP_RESHARDABLE, FULLY_RESHARDABLE, RunCard
from megatron_ipt.mcore.together import all_come
from megatron_ipt.settings import TrainSettings

logger = logging.getLogger(__name__)


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Within the block no other run saves into `folder`, which is made.  UserError on all ranks where one does."""
    held: list[IO[str]] = []

    def take() -> UserError | None:
        try:
            held.append(locked(folder))
        except UserError as error:
            return error
        return None

    if (fault := parallel.on_main(take)) is not None:
        raise fault
    try:
        yield
    finally:
        for file in held:
            give_back(file, folder)


@dataclass(frozen=True, slots=True)
class _Underway:
    pending: Pending
    began: float
    stood: float


class Saver:
    """Saves into `folder`.  `told(iteration, **values)` hears of each checkpoint once it is the newest.

    `parent` is the checkpoint that the run goes on from: that of the first card; then each is the next one's.
    """

    def __init__(self, folder: Path, train: TrainSettings, parent: Path | None, told: Callable[..., None]) -> None:
        self._folder, self._train, self._told = folder, train, told
        self._parent = "" if parent is None else parent.name if parent.parent == folder else str(parent)
        self._underway: _Underway | None = None

    def save(
        self, card: RunCard, chunks: Sequence[torch.nn.Module], optimizer: MegatronOptimizer, *, last: bool
    ) -> None:
        """Save what `card` describes.  `last`: it is whole when this returns, and any layout loads it."""
        self.finish()
        began = time.perf_counter()
        fully = self._train.is_fully_reshardable(card.iteration, last=last)
        kind = FULLY_RESHARDABLE if fully else DP_RESHARDABLE
        card = replace(card, parent=self._parent)
        self._parent = folder_of(self._folder, card.iteration).name
        if self._train.async_save and not last:
            pending = Pending(self._folder, card, chunks, optimizer, kind)
            self._underway = _Underway(pending, began, time.perf_counter() - began)
            return
        checkpoints.save(self._folder, card, chunks, optimizer, sharding_type=kind)
        self._saved(card.iteration, began, time.perf_counter() - began)

    def poll(self) -> None:
        """Between two steps: a save behind training becomes the newest as soon as all ranks have written it."""
        if self._underway is not None and self._underway.pending.is_written():
            self.finish()

    def finish(self) -> None:
        """Wait for the save behind training, if one is under way."""
        if self._underway is None:
            return
        underway, self._underway = self._underway, None
        began = time.perf_counter()
        underway.pending.finish()
        stood = underway.stood + time.perf_counter() - began
        self._saved(underway.pending.card.iteration, underway.began, stood)

    def rescue(self) -> None:
        """After a fault: finish the save behind training if all ranks have come to this, and log it if they have not.

        A rank that failed alone leaves after APART seconds: the others may wait for it in a collective.
        """
        if self._underway is None:
            return
        told = f"{self._underway.pending.final} was written behind training and is not finished"
        try:
            if all_come():
                self.finish()
            else:
                logger.error("%s: not all ranks have come to this end", told)
        except (UserError, *parallel.FAULTS) as error:
            logger.error("%s: %s", told, error)

    def _saved(self, iteration: int, began: float, stood: float) -> None:
        """Tell it, then remove what is not to be kept; `seconds` is how long training stood."""
        row: dict[str, Any] = {"path": folder_of(self._folder, iteration).name, "seconds": stood}
        if self._train.async_save:
            row["written_seconds"] = time.perf_counter() - began
        self._told(iteration, **row)
        keep = self._train.most_recent_k, self._train.save_retain_interval
        try:
            parallel.on_main(lambda: remove(not_kept(self._folder, iteration, *keep)))
        except OSError as error:
            logger.warning("a checkpoint that is not to be kept could not be removed: %s", error)
