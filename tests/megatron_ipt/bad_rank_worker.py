"""Run by torchrun in the place of megatron_ipt.pretrain: a rank does not come through step 3, or through a save.

FAULT is `sleep` or `kill`, both of rank 1 in the forward pass; or `metadata`: rank 0, which writes that file while the
others wait for it, has no room for it from the second save on.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import Any

import torch.distributed as dist
import typer

from megatron_ipt import pretrain
from megatron_ipt.mcore import model as models
from megatron_ipt.mcore import together

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


def without_room() -> None:
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    finish, saves = FileSystemWriterAsync.finish, []

    def write(self: Any, *arguments: Any) -> None:
        saves.append(self.checkpoint_dir)
        if len(saves) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finish(self, *arguments)

    FileSystemWriterAsync.finish = write  # type: ignore[method-assign]
    together.APART = 2.0


if __name__ == "__main__":
    if os.environ["FAULT"] == "metadata":
        without_room()
    else:
        models.forward_step = faulty
    typer.run(pretrain.main)
