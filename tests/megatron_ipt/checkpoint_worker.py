"""Run by torchrun: training runs one after another in one process group, with things done to checkpoints in between.

    torchrun checkpoint_worker.py RECIPE OUT.json '[["name", "what is done first", ["train.train_iters=3", ...]], ...]'

What is done first, by rank 0: `flip PATH` a bit in the middle of a file, `truncate PATH` to half.  `slow` makes every
write behind training wait until the next step is done, `broken` makes that of the second rank fail.  `compare A B` and
`reshard A OUT` run nothing: the first tells how far the tensors of two checkpoints are apart.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from megatron_ipt.recipe import load_recipe

WRITE: list[Any] = []
"""What writes behind training, before anything was done to it."""


def done_first(what: str) -> None:
    import torch.distributed as dist

    from megatron_ipt.mcore import checkpoint_async

    action, *paths = what.split() or [""]
    plain = WRITE or WRITE.append(checkpoint_async.Pending._write) or WRITE
    checkpoint_async.Pending._write = plain[0]  # type: ignore[method-assign]
    if action == "slow":

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


def run(recipe: Path, first: str, overrides: list[str]) -> Any:
    from recorded import train

    done_first(first)
    if first.startswith("reshard"):
        from megatron_ipt.convert.reshard import reshard

        return str(reshard(*map(Path, first.split()[1:])))
    if first.startswith("compare"):
        return compared(*first.split()[1:])
    try:
        return train(load_recipe(recipe, overrides))
    except UserError as error:
        return {"error": str(error)}


def main() -> None:
    import torch.distributed as dist

    from megatron_ipt.mcore import parallel

    logging.basicConfig(level=logging.WARNING)
    recipe, out, jobs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    found = {}
    with parallel.distributed():
        for name, first, overrides in jobs:
            found[name] = run(recipe, first, overrides)
        if dist.get_rank() == 0:
            out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
