"""On several ranks: two ranks of one tensor-parallel group take the same steps; each writes what it read and got.

torchrun share_worker.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from megatron_ipt.data.loader import read_ahead
from megatron_ipt.data.stream import Sample
from megatron_ipt.mcore import parallel
from megatron_ipt.settings import TrainSettings


def main(folder: Path) -> None:
    settings = {"global_batch_size": 4, "micro_batch_size": 2, "seq_length": 8, "train_iters": 2, "lr": 1e-3}
    train = TrainSettings(**settings, tensor_model_parallel_size=2)
    read: list[int] = []

    def sample(index: int) -> Sample:
        read.append(index)
        row = np.full(8, index)
        return Sample(row, row + 1, np.full(8, 0.5, np.float32), np.arange(8), "one", (), np.zeros(8, np.int64))

    with parallel.distributed(), parallel.model_parallel(train) as ranks:
        with read_ahead(sample, train, ranks, consumed_samples=0, steps_left=2) as loader:
            steps = [[{name: field.clone() for name, field in batch.items()} for batch in step] for step in loader]
        torch.save({"read": read, "steps": steps}, folder / f"{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
