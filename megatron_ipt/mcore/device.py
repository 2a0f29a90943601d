"""The one place that knows whether this process has a GPU, and every difference that makes.

`TABLE` lists what differs between CPU and GPU and why; the rest of the code asks `pick(name)` and
never looks at the device.  What makes megatron-core run without a GPU at all is in `shim.py`.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from data_prep.errors import UserError

M_MMAP_THRESHOLD = -3
"""glibc's name for the size from which an allocation is a mapping of its own, gone when it is freed [bytes]."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same on CPU and GPU.  `config` names are fields of TransformerConfig."""

    name: str
    cpu: Any
    gpu: Any
    reason: str
    config: bool = False


TABLE: tuple[Difference, ...] = (
    Difference("device", "cpu", "cuda", "where tensors live"),
    Difference("backend", "gloo", "nccl", "torch.distributed backend"),
    Difference("graphs", False, True, "random numbers that a graph draws anew are CUDA's"),
    Difference("pin_memory", False, True, "batches in pinned host memory are copied while the GPU computes"),
    Difference(
        "optimizer", "torch adam", "fused adam", "both keep the step count in the param group: one checkpoint format"
    ),
    Difference("masked_softmax_fusion", False, True, "a CUDA kernel", config=True),
    Difference(
        "gradient_accumulation_fusion",
        False,
        False,
        "needs a weight-gradient kernel of apex or TE",
        config=True,
    ),
    Difference("apply_rope_fusion", False, True, "a kernel of TE; local layers go without", config=True),
    Difference("bias_activation_fusion", False, True, "compiled for the GPU", config=True),
    Difference("bias_dropout_fusion", False, True, "compiled for the GPU", config=True),
    Difference("persist_layer_norm", False, False, "apex only; our norms are RMS", config=True),
    Difference(
        "use_cpu_initialization", True, True, "the same fresh weights for every tensor-parallel size", config=True
    ),
    Difference(
        "deallocate_pipeline_outputs", False, True, "frees activations once sent; gloo still reads them", config=True
    ),
)


def has_gpu() -> bool:
    return torch.cuda.is_available()


def pick(name: str) -> Any:
    """The value of `name` in TABLE for this process."""
    for row in TABLE:
        if row.name == name:
            return row.gpu if has_gpu() else row.cpu
    raise KeyError(name)


def config_fields(layers: str) -> dict[str, Any]:
    """The fields of TransformerConfig that the device decides, for Transformer Engine's `layers` or the local ones."""
    found = {row.name: pick(row.name) for row in TABLE if row.config}
    if layers != "transformer_engine":
        found["apply_rope_fusion"] = False
    return found


def transformer_impl(wanted: str) -> str:
    """Whose layers to build: `auto` means Transformer Engine's wherever it can run, else the local ones."""
    if wanted != "auto":
        return wanted
    return "transformer_engine" if has_transformer_engine() else "local"


def has_transformer_engine() -> bool:
    """Whether Transformer Engine's layers can run: they need a GPU.  UserError where it is installed but broken."""
    check_transformer_engine()
    return has_gpu() and _transformer_engine_is_installed()


def check_transformer_engine() -> None:
    """UserError for an installed Transformer Engine that does not import: no file of megatron-core would either."""
    fault = transformer_engine_fault()
    if fault is not None:
        mend = "install the build that was made for this torch, or `pip uninstall transformer-engine` to do without"
        raise UserError("transformer_engine", f"is installed but does not import ({fault})", mend)


@functools.cache
def transformer_engine_fault() -> str | None:
    """Why the installed Transformer Engine does not import; None where it does, or where there is none."""
    if not _transformer_engine_is_installed():
        return None
    try:
        importlib.import_module("transformer_engine.pytorch")
    except Exception as error:  # whatever its compiled parts and the libraries they open raise
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[-1] if lines else 'no reason given'}"
    return None


def _transformer_engine_is_installed() -> bool:
    return importlib.util.find_spec("transformer_engine") is not None


def card() -> tuple[str, tuple[int, int], tuple[int, int]]:
    """Name and compute capability of this process's GPU, and the CUDA that torch was built with."""
    major, minor = (torch.version.cuda or "0.0").split(".")[:2]
    return torch.cuda.get_device_name(), torch.cuda.get_device_capability(), (int(major), int(minor))


def gpu_count() -> int:
    """GPUs that this process sees; 0 on a machine without."""
    return torch.cuda.device_count() if has_gpu() else 0


def check_gpus(processes: int, gpus: int) -> None:
    """UserError for more processes on a machine than it has GPUs; without any they run on the CPU, however many."""
    if 0 < gpus < processes:
        problem = f"{processes} processes on a machine with {gpus} GPU(s), and each takes one"
        mend = f"set it, or torchrun's --nproc-per-node, to {gpus} at most; on more machines start torchrun on each"
        raise UserError("train.nproc_per_node", problem, mend)


def set_device(local_rank: int) -> None:
    """Bind this process to its GPU; nothing on a CPU.  UserError where its machine has none left for it."""
    started = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if local_rank >= (gpus := gpu_count()):
        check_gpus(max(started, local_rank + 1), gpus)
    torch.cuda.set_device(local_rank)


def for_thread() -> Callable[[], None]:
    """What a new thread calls first, so that its GPU is that of this one; nothing on a CPU."""
    if not has_gpu():
        return lambda: None
    return functools.partial(torch.cuda.set_device, torch.cuda.current_device())


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within, torch uses kernels that give the same bits each time, and refuses those that do not."""
    before = torch.are_deterministic_algorithms_enabled()
    if before or not wanted:  # as it is: setting it anew would import torch's compiler, a second of a process's start
        yield
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def lean() -> Iterator[None]:
    """Around something that needs much memory at once: what is not used is given back, before it and within."""
    gc.collect()
    if has_gpu():
        torch.cuda.empty_cache()
    if has_gpu() or sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.malloc_trim(0)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, int(os.environ.get("MALLOC_MMAP_THRESHOLD_", 1 << 25)))


def memory_bytes() -> int:
    """Peak memory of this process: allocated on the GPU, or resident on a CPU [bytes]."""
    if has_gpu():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
