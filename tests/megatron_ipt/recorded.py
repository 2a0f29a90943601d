"""What a training run writes to its metrics, as a list, on every rank."""

from __future__ import annotations

from typing import Any

from megatron_ipt import pretrain
from megatron_ipt.recipe import Recipe
from megatron_ipt.training.metrics import Metrics


def train(recipe: Recipe) -> list[dict[str, Any]]:
    """Runs `recipe`; gives the rows of this call."""
    rows: list[dict[str, Any]] = []
    write = Metrics.write

    def recorded(self: Metrics, kind: str, iteration: int, **values: Any) -> None:
        rows.append({"kind": kind, "iteration": iteration, **values})
        write(self, kind, iteration, **values)

    Metrics.write = recorded  # type: ignore[method-assign]
    try:
        pretrain.pretrain(recipe)
    finally:
        Metrics.write = write  # type: ignore[method-assign]
    return rows
