"""Which GPUs each of several workers on one machine sees: a slice of those that this process sees."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Final

from data_prep.errors import UserError
from data_prep.settings import SynthesizeSettings

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"


def environments_of(settings: SynthesizeSettings, workers: int) -> list[dict[str, str]]:
    """What the environment of each worker says over that of this process; nothing where no GPU is used.

    Raises:
        UserError: more workers than the visible GPUs have room for.
    """
    if settings.engine not in ("transformers", "vllm"):
        return [{} for _ in range(workers)]
    return environments(visible_devices(os.environ), workers, gpus_of_engine(settings))


def environments(devices: Sequence[str], workers: int, size: int) -> list[dict[str, str]]:
    """The slices of `devices`, `size` to each worker; nothing where there is none.

    Raises:
        UserError: there are devices, and not enough of them.
    """
    if not devices:
        return [{} for _ in range(workers)]
    if workers * size > len(devices):
        problem = f"{workers} engines of {size} GPUs each, and {len(devices)} GPUs are visible"
        mend = f"take at most {max(1, len(devices) // size)}, or let {VISIBLE} name more"
        raise UserError("--workers", problem, mend)
    return [{VISIBLE: ",".join(devices[size * worker : size * (worker + 1)])} for worker in range(workers)]


def gpus_of_engine(settings: SynthesizeSettings) -> int:
    """GPUs of one engine: one with transformers, with vLLM as many as share the model."""
    if settings.engine != "vllm":
        return 1
    more = (settings.engine_args.get(f"{kind}_parallel_size", 1) for kind in ("pipeline", "data"))
    return settings.tensor_parallel_size * math.prod(size for size in more if isinstance(size, int))


def visible_devices(environment: Mapping[str, str]) -> list[str]:
    """GPUs by their indices or UUIDs, as CUDA_VISIBLE_DEVICES names them; without it, all that there are.

    As CUDA reads it, the list ends at the first entry that names no device (`-1`, `NoDevFiles`).
    """
    named = environment.get(VISIBLE)
    if named is not None:
        return list(takewhile(_is_device, (entry.strip() for entry in named.split(","))))
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]  # by NVML: CUDA is not started by it


def _is_device(entry: str) -> bool:
    return entry.isdecimal() or entry.startswith(("GPU-", "MIG-"))


@contextmanager
def environment_with(values: Mapping[str, str]) -> Iterator[None]:
    """This process' environment with `values`, for what is started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
