"""Where each step of a run writes, below the recipe's `output_dir`.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The files of one run, in the order of the steps."""

    root: Path

    @property
    def documents(self) -> Path:
        return self.root / "raw" / "train.jsonl"

    @property
    def held_out(self) -> Path:
        return self.root / "raw" / "held_out.jsonl"

    @property
    def model(self) -> Path:
        """The fetched model: a link into the cache."""
        return self.root / "model"

    @property
    def chains(self) -> Path:
        return self.root / "pairs" / "chains.jsonl"

    @property
    def checked(self) -> Path:
        return self.root / "checked" / "chains.jsonl"

    @property
    def text(self) -> Path:
        return self.root / "text"

    @property
    def indexed(self) -> Path:
        return self.root / "indexed"

    @property
    def held_out_prefix(self) -> Path:
        return self.indexed / "held_out"

    @property
    def blend(self) -> Path:
        return self.root / "blend" / "blend.json"

    @property
    def train(self) -> Path:
        return self.root / "train"

    @property
    def checkpoints(self) -> Path:
        return self.train / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.train / "metrics.jsonl"

    @property
    def hf(self) -> Path:
        return self.root / "hf"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"

    @property
    def report(self) -> Path:
        return self.root / "report.html"
