"""The micro batches of one step on one rank, as tensors.

A step consumes samples [first, first + global_batch_size).  Data-parallel rank d of n takes first + d, first + d + n,
...: the same global batch for any n, so a run may go on with another number of processes.

    Loader          training: a thread reads the next steps while this one runs
    micro_batches   validation: reads when it is asked

Of each tensor-parallel group one rank reads and hands the step's tensors to the others.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from megatron_ipt.data.stream import Sample
from megatron_ipt.mcore import device

if TYPE_CHECKING:
    from megatron_ipt.mcore.parallel import Ranks
    from megatron_ipt.settings import TrainSettings

FIELDS = ("tokens", "labels", "position_ids", "loss_mask", "segments", "source_index")

AHEAD = 2
"""Steps that are read before they are asked for: what bounds the loader's memory."""

type Batch = Mapping[str, torch.Tensor]


def indices(first: int, global_batch_size: int, rank: int, size: int) -> range:
    """The samples of one step that data-parallel rank `rank` of `size` reads."""
    return range(first + rank, first + global_batch_size, size)


def steps(first: int, stop: int, global_batch_size: int, rank: int, size: int) -> Iterator[range]:
    """The samples of each step from sample `first` to before `stop`, as data-parallel rank `rank` of `size` reads."""
    return (indices(start, global_batch_size, rank, size) for start in range(first, stop, global_batch_size))


def read_ahead(
    sample: Callable[[int], Sample], train: TrainSettings, ranks: Ranks, consumed_samples: int, steps_left: int
) -> Loader:
    """The loader of a training run from sample `consumed_samples` on; of each tensor-parallel group one rank reads."""
    from megatron_ipt.mcore import parallel

    rank, size = ranks.data_parallel_rank, ranks.data_parallel_size
    batches = train.batch_sizes.steps(consumed_samples, steps_left)
    return Loader(
        sample,
        (indices(batch.start, len(batch), rank, size) for batch in batches),
        train.micro_batch_size,
        reads=parallel.tensor_parallel_rank() == 0,
        share=parallel.share_tensor_parallel,
    )


def micro_batches(
    sample: Callable[[int], Sample], samples: Sequence[int], micro_batch_size: int, device: str
) -> Iterator[Batch]:
    """Batches of `micro_batch_size` samples on `device`.

    Shapes are [micro batch, sequence]: tokens, labels, position_ids, segments int64; loss_mask float32; source_index
    is int64 [micro batch].
    """
    for start in range(0, len(samples), micro_batch_size):
        rows = [sample(index) for index in samples[start : start + micro_batch_size]]
        yield {name: torch.from_numpy(np.stack([getattr(row, name) for row in rows])).to(device) for name in FIELDS}


class Loader:
    """The micro batches of step after step: an iterator, and a context that ends its thread.

    Each step is one block of bytes, so that it takes one copy to the device and one broadcast to the ranks that do not
    read.  `waited` is how long the last step was waited for [s]: reading not done yet, the copy, the broadcast.

    What `sample` raises comes out of `next` as it is, in its turn, and ends the iteration.
    """

    def __init__(
        self,
        sample: Callable[[int], Sample],
        steps: Iterable[Sequence[int]],
        micro_batch_size: int,
        *,
        reads: bool = True,
        share: Callable[[torch.Tensor], torch.Tensor] = lambda block: block,
    ) -> None:
        """`steps` are the samples of each step, the same on all ranks that `share` a block.

        `reads`: whether this rank reads; `share` fills a block, in place, with that of the rank that does.
        """
        self.waited = 0.0
        self._sample, self._micro_batch_size, self._share = sample, micro_batch_size, share
        self._device, self._pin = device.pick("device"), device.pick("pin_memory")
        self._steps: Iterator[Sequence[int]]
        self._steps, unread = itertools.tee(steps)
        self._unread = unread if reads else None
        self._layout: Layout | None = None
        self._ahead: deque[Future[torch.Tensor]] = deque()
        self._reader = ThreadPoolExecutor(1, "loader", initializer=device.for_thread())

    def __enter__(self) -> Self:
        for _ in range(AHEAD):
            self._read_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[Batch]:
        """The micro batches of the next step on the device.  Errors: what reading them raised."""
        samples, began = next(self._steps), time.perf_counter()
        if self._unread is None:
            block = torch.empty(self._layout_of(samples).bytes(len(samples)), dtype=torch.uint8, device=self._device)
        else:
            block = self._read_block().to(self._device, non_blocking=True)
        fields = self._layout_of(samples).views(self._share(block), len(samples))
        self.waited = time.perf_counter() - began
        starts = range(0, len(samples), self._micro_batch_size)
        return [{name: field[at : at + self._micro_batch_size] for name, field in fields.items()} for at in starts]

    def _read_block(self) -> torch.Tensor:
        try:
            block = self._ahead.popleft().result()
        except Exception:
            self._steps = iter(())  # a step must not be left out
            raise
        self._read_on()
        return block

    def _read_on(self) -> None:
        samples = next(self._unread, None) if self._unread is not None else None
        if samples is not None:
            self._ahead.append(self._reader.submit(self._read, samples))

    def _read(self, samples: Sequence[int]) -> torch.Tensor:
        return read_step(self._sample, samples, self._layout_of(samples), self._pin)

    def _layout_of(self, samples: Sequence[int]) -> Layout:
        """The same for every sample; found on each rank alone, so that none has to be told."""
        if self._layout is None:
            self._layout = Layout.of(self._sample(samples[0]))
        return self._layout


@dataclass(frozen=True, slots=True)
class Layout:
    """How the fields of samples lie in a block of bytes: (name, dtype, shape of one sample), widest dtype first."""

    fields: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]

    @classmethod
    def of(cls, sample: Sample) -> Layout:
        tensors = {name: torch.from_numpy(np.asarray(getattr(sample, name))) for name in FIELDS}
        by_width = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
        return cls(tuple((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in by_width))

    def bytes(self, count: int) -> int:
        """Size of the block of `count` samples."""
        return sum(_bytes(count, dtype, shape) for _, dtype, shape in self.fields)

    def views(self, block: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
        """Each field of `count` samples, [count, ...], as a part of the block."""
        found, start = {}, 0
        for name, dtype, shape in self.fields:
            size = _bytes(count, dtype, shape)
            found[name] = block[start : start + size].view(dtype).view(count, *shape)
            start += size
        return found


def read_step(
    sample: Callable[[int], Sample], samples: Sequence[int], layout: Layout, pin_memory: bool
) -> torch.Tensor:
    """The block of one step, in host memory: uint8 [bytes]."""
    block = torch.empty(layout.bytes(len(samples)), dtype=torch.uint8, pin_memory=pin_memory)
    views = {name: view.numpy() for name, view in layout.views(block, len(samples)).items()}
    for place, index in enumerate(samples):
        row = sample(index)
        for name, view in views.items():
            view[place] = getattr(row, name)
    return block


def _bytes(count: int, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return count * math.prod(shape) * dtype.itemsize
