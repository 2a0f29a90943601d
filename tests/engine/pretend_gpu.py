"""Lets Transformer Engine's layers be made where there is no GPU: shapes on the meta device, nothing computed.

Import it first.  It answers what Transformer Engine asks before it makes a layer, as an H100 would.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

_REAL = torch.cuda.is_available
CARD = (9, 0)


@contextmanager
def gpu(capability: tuple[int, int] = CARD) -> Iterator[None]:
    """Within, torch says that a GPU of this compute capability is there, and new tensors of it are on meta."""
    card = SimpleNamespace(
        major=capability[0], minor=capability[1], name="pretended", multi_processor_count=132, total_memory=80 << 30
    )
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "current_device": lambda: "meta",
        "get_device_capability": lambda *_: capability,
        "get_device_properties": lambda *_: card,
    }
    before = {name: getattr(torch.cuda, name) for name in answers}
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    try:
        yield
    finally:
        for name, real in before.items():
            setattr(torch.cuda, name, real)
