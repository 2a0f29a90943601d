"""Run by torchrun in the place of megatron_ipt.pretrain: rank 1 does not come through step 3.

FAULT is `sleep` or `kill`, both in the forward pass.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch.distributed as dist
import typer

from megatron_ipt import pretrain
from megatron_ipt.mcore import model as models

forward_step = models.forward_step
batches_taken = 0


def faulty(train: Any, sources: int, batches: Any, model: Any) -> Any:
    global batches_taken
    found = forward_step(train, sources, batches, model)
    batches_taken += 1
    if dist.get_rank() == 1 and batches_taken > 2 * train.global_batch_size // train.micro_batch_size // 2:
        if os.environ["FAULT"] == "sleep":
            time.sleep(600)
        os.kill(os.getpid(), signal.SIGKILL)
    return found


if __name__ == "__main__":
    models.forward_step = faulty
    typer.run(pretrain.main)
