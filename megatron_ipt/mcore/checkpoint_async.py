"""A save behind training: this rank's tensors are copied to host memory, a thread writes and hashes them.

The copy is what training waits for.  What ranks must do together (the metadata file, card, hashes, rename, `latest`)
waits until the threads of all ranks have ended, and is done on the main thread: between two steps, before the next
save, or at the end.  Until then the checkpoint before is the newest; a process that dies loses nothing of it.

megatron-core's own callers start a process for the writing; a thread does, as it spends its time in file calls that
let others run.
"""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.optimizer import MegatronOptimizer

from megatron_ipt.mcore import checkpoint as checkpoints
from megatron_ipt.mcore import device, integrity, parallel
from megatron_ipt.mcore.checkpoint_folder import folder_of, fresh_folder, partial_of
from megatron_ipt.mcore.model import finish_param_gather, without_grad_buffers
from megatron_ipt.mcore.run_card import RunCard
from megatron_ipt.mcore.together import together


class Pending:
    """One save that is under way.  All ranks make it, and call each of its functions, together."""

    def __init__(
        self,
        folder: Path,
        card: RunCard,
        chunks: Sequence[torch.nn.Module],
        optimizer: MegatronOptimizer | None,
        sharding_type: str,
    ) -> None:
        """Copies the state and starts the thread.  UserError on all ranks where one cannot."""
        self.card = checkpoints.completed(card, chunks, optimizer, sharding_type)
        self.final = folder_of(folder, card.iteration)
        self._fault: BaseException | None = None
        self._hashes: dict[str, str] = {}
        partial = partial_of(self.final)
        try:
            parallel.on_main(lambda: fresh_folder(partial))
            finish_param_gather(chunks, optimizer)
            self._request: Any = None
            together(lambda: self._prepare(partial, chunks, optimizer, sharding_type))
        except OSError as error:
            raise checkpoints.not_written(self.final, error) from error
        self._thread = threading.Thread(target=self._write, args=(device.for_thread(),), name="checkpoint", daemon=True)
        self._thread.start()

    def is_written(self) -> bool:
        """Whether the threads of all ranks have ended."""
        return not parallel.largest_over_ranks(float(self._thread.is_alive()))

    def finish(self) -> Path:
        """Wait for the threads, then make the checkpoint the newest.  UserError on all ranks where one failed."""
        self._thread.join()
        try:
            parallel.on_all(self._raise_fault)
            together(self._finalize)
            checkpoints.seal(self.final, self.card, self._hashes)
        except OSError as error:
            raise checkpoints.not_written(self.final, error) from error
        return self.final

    def _prepare(
        self, partial: Path, chunks: Sequence[torch.nn.Module], optimizer: MegatronOptimizer | None, sharding_type: str
    ) -> None:
        checkpoints.keep_results_here()
        with without_grad_buffers(chunks):
            state = checkpoints.state_of(chunks, optimizer, sharding_type, is_loading=False)
            self._request = dist_checkpointing.save(
                state,
                str(partial),
                content_metadata=checkpoints.content_metadata(sharding_type),
                async_sharded_save=True,
                async_strategy="mcore",
            )
            del state
            self._buckets = _copied(self._request)

    def _write(self, on_device: Any) -> None:
        try:
            on_device()
            request, buckets = self._request, self._buckets
            if request.async_fn is None:
                return
            rank, _, results = request.async_fn_args
            request.async_fn(rank, buckets, results, **request.async_fn_kwargs)
            self._hashes = integrity.hashes(Path(bucket[0]) for bucket in buckets if Path(bucket[0]).exists())
        except BaseException as error:  # told on the main thread, by all ranks
            self._fault = error
        finally:
            self._buckets = []

    def _finalize(self) -> None:
        for finalize in self._request.finalize_fns:
            finalize()

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise OSError(f"{type(self._fault).__name__}: {self._fault}")


def _copied(request: Any) -> list[Any]:
    """What this rank writes, in host memory and apart from what the next step changes."""
    if request.preload_fn is None:
        return []
    live = request.async_fn_args[1]
    return [
        (path, key, (plain, [_apart(before, now) for before, now in zip(tensors, here, strict=True)]))
        for (_, _, (_, tensors)), (path, key, (plain, here)) in zip(live, request.preload_fn(), strict=True)
    ]


def _apart(before: tuple[Any, torch.Tensor], now: tuple[Any, torch.Tensor]) -> tuple[Any, torch.Tensor]:
    """A tensor that was in host memory already is still the one that training changes."""
    item, tensor = now
    return item, tensor.clone() if tensor.data_ptr() == before[1].data_ptr() else tensor
