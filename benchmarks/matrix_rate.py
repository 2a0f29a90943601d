#!/usr/bin/env python3
"""How many FLOP/s this device reaches in matrix products alone: what a model's share of it is counted from.

    python benchmarks/matrix_rate.py '[[8192, 4096, 6144, 32], ...]'

Prints, as JSON, the device and for each number format the FLOP/s of a square product and of the products given as
m, k, n and how often: all FLOP of [m, k] x [k, n] over the time of all.  bf16 by torch.matmul, FP8 (where the card has
it) by torch._scaled_mm with one scale a tensor.  On a CPU with OMP_NUM_THREADS threads.  Has not run on a GPU.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

SQUARE = {"cpu": 1024, "cuda": 8192}
PACKAGES = ("torch", "megatron-core", "transformer-engine", "triton")
SECONDS = 0.2
"""Each product is repeated for so long, five times; the median counts."""


def machine() -> dict[str, Any]:
    """The device, and what a case may need of it."""
    found: dict[str, Any] = {"device": processor(), "cores": os.cpu_count(), "gpus": 0}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found |= {"device": card.name, "gpus": torch.cuda.device_count(), "memory_bytes": card.total_memory}
        found["capability"] = list(torch.cuda.get_device_capability())
    engine = importlib.util.find_spec("transformer_engine") is not None
    names = {each.metadata["Name"].lower() for each in importlib.metadata.distributions()}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if name in names}
    return {**found, "versions": versions, "transformer_engine": bool(found["gpus"]) and engine}


def processor() -> str:
    """The name in /proc/cpuinfo, or what Python knows."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def rates(shapes: Sequence[Sequence[int]], place: str) -> dict[str, dict[str, float]]:
    """FLOP/s by number format: of a `square` product, and of `products`, the shapes together."""
    square = [SQUARE[place]] * 3
    makers: dict[str, Callable[..., Callable[[], Any]]] = {"bfloat16": _bf16}
    if place == "cuda" and torch.cuda.get_device_capability() >= (8, 9):
        makers["float8"] = _fp8
    found = {}
    for name, maker in makers.items():
        taken = sum(times * seconds(maker(*shape, place)) for *shape, times in shapes)
        flop = sum(2.0 * m * k * n * times for m, k, n, times in shapes)
        found[name] = {"square": 2.0 * SQUARE[place] ** 3 / seconds(maker(*square, place))}
        if shapes:
            found[name]["products"] = flop / taken
    return found


def _bf16(m: int, k: int, n: int, place: str) -> Callable[[], Any]:
    a = torch.randn(m, k, dtype=torch.bfloat16, device=place)
    b = torch.randn(n, k, dtype=torch.bfloat16, device=place).t()  # a layer's weight is [out, in]
    return lambda: a @ b


def _fp8(m: int, k: int, n: int, place: str) -> Callable[[], Any]:
    a = torch.randn(m, k, device=place).to(torch.float8_e4m3fn)
    b = torch.randn(n, k, device=place).to(torch.float8_e4m3fn).t()
    one = torch.ones((), device=place)
    return lambda: torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def seconds(product: Callable[[], Any]) -> float:
    """Of one product, when many follow each other."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

    def timed(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            product()
        wait()
        return (time.perf_counter() - began) / count

    timed(2)
    count = max(1, int(SECONDS / timed(2)))
    return statistics.median(timed(count) for _ in range(5))


if __name__ == "__main__":
    where = "cuda" if torch.cuda.is_available() else "cpu"
    asked = json.loads(sys.argv[1]) if len(sys.argv) > 1 else None
    print(json.dumps({"machine": machine(), "rates": {} if asked is None else rates(asked, where)}))
