"""On several ranks: training runs one after another in one process group, with things done to checkpoints in between.

    torchrun checkpoint_worker.py RECIPE OUT.json '{"name": ["what is done first", ["train.train_iters=3", ...]], ...}'

What is done first, by rank 0: `flip PATH` a bit in the middle of a file, `truncate PATH` to half.  `slow` makes every
write behind training wait until the next step is done, `broken` makes that of the second rank fail; `fails` is `slow`,
and the second step ends in an error.  `compare A B` runs nothing: it tells how far the tensors of two checkpoints are
apart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recorded import run_jobs, trained

from data_prep.errors import UserError
from megatron_ipt import pretrain

WRITE: list[Any] = []
"""What writes behind training, before anything was done to it."""


def done_first(what: str) -> None:
    import torch.distributed as dist

    from megatron_ipt.mcore import checkpoint_async

    action, *paths = what.split() or [""]
    plain = WRITE or WRITE.append(checkpoint_async.Pending._write) or WRITE
    checkpoint_async.Pending._write = plain[0]  # type: ignore[method-assign]
    if action in ("slow", "fails"):

        def slow(self: Any, *arguments: Any) -> None:
            time.sleep(1.0)
            plain[0](self, *arguments)

        checkpoint_async.Pending._write = slow  # type: ignore[method-assign]
    if action == "broken" and dist.get_rank() == 1:

        def broken(self: Any, *_: Any) -> None:
            self._fault = OSError(28, "No space left on device")

        checkpoint_async.Pending._write = broken  # type: ignore[method-assign]
    if dist.get_rank() == 0 and action in ("flip", "truncate"):
        path = Path(paths[0])
        content = bytearray(path.read_bytes())
        if action == "flip":
            content[len(content) // 2] ^= 1
        path.write_bytes(content if action == "flip" else content[: len(content) // 2])
    dist.barrier()


@contextmanager
def failing(*, wanted: bool) -> Iterator[None]:
    """Within the block the second step ends in an error of all ranks, if `wanted`."""
    write_step = pretrain.write_step

    def fails(run: Any, step: Any, *arguments: Any, **options: Any) -> Any:
        if step.iteration == 2:
            raise UserError("step 2", "fails on all ranks")
        return write_step(run, step, *arguments, **options)

    pretrain.write_step = fails if wanted else write_step
    try:
        yield
    finally:
        pretrain.write_step = write_step


def compared(first: str, second: str) -> dict[str, Any]:
    """The tensors' names, and the largest difference of any two, by what they are."""
    import torch
    from megatron.core import dist_checkpointing

    a, b = (
        {name: value for name, value in dist_checkpointing.load_plain_tensors(path).items() if torch.is_tensor(value)}
        for path in (first, second)
    )
    unlike: dict[str, float] = {}
    for name in a:
        part = name.split(".")[2] if name.startswith("optimizer.state.") else "weights"
        unlike[part] = max(unlike.get(part, 0.0), float((a[name] - b[name]).abs().max()))
    sizes = {part: max(float(a[name].abs().max()) for name in a if f".{part}." in name) for part in ("exp_avg",)}
    return {"same_names": sorted(a) == sorted(b), "unlike": unlike, "largest": sizes}


def run(recipe: Path, job: tuple[str, list[str]]) -> Any:
    first, overrides = job
    with failing(wanted=first == "fails"):
        done_first(first)
        if first.startswith("compare"):
            return compared(*first.split()[1:])
        return trained(recipe, overrides)


if __name__ == "__main__":
    run_jobs(run)
