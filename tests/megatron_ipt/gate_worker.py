"""On several ranks, 3 processes: the gate under tensor and sequence parallelism of 3, which 512 tokens do not divide.

torchrun gate_worker.py HF_DIRECTORY OUT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

from megatron_ipt.architecture import padded_vocab_size
from megatron_ipt.convert.families import read_architecture
from megatron_ipt.convert.parity import gate
from megatron_ipt.mcore import parallel
from megatron_ipt.settings import ModelSettings, TrainSettings

TRAIN = TrainSettings(
    global_batch_size=1,
    seq_length=63,
    train_iters=1,
    lr=1e-3,
    bf16=False,
    tensor_model_parallel_size=3,
    sequence_parallel=True,
)


def main() -> None:
    directory, out = Path(sys.argv[1]), Path(sys.argv[2])
    architecture = read_architecture(directory)
    with parallel.distributed(), parallel.model_parallel(TRAIN):
        found = gate(directory, architecture, TRAIN, padded_vocab_size(architecture, ModelSettings(), TRAIN))
        if dist.get_rank() == 0:
            out.write_text(json.dumps(found.to_json()), encoding="utf-8")


if __name__ == "__main__":
    main()
