"""Run by torchrun: faults in what ranks do together, with a collective inside.

    torchrun together_worker.py FOLDER

Writes FOLDER/RANK.json: what each fault told this rank, before the last one, which ends the second rank.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from megatron_ipt.mcore import parallel, together


def told(action: Callable[[], None]) -> str:
    try:
        together.together(action)
    except OSError as error:
        return str(error)
    return "as it should be"


def fails_on(*ranks: int) -> None:
    if dist.get_rank() in ranks:
        raise ValueError(f"of rank {dist.get_rank()}")


def in_front_of_a_collective() -> None:
    fails_on(0)
    dist.barrier()


def come_after(seconds: float, apart: float) -> bool:
    dist.barrier()
    together.APART = apart
    time.sleep(seconds)
    return together.all_come()


def main(folder: Path) -> None:
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    together.APART = 2.0
    with parallel.distributed():
        rank = dist.get_rank()
        found = {
            "nothing": told(dist.barrier),
            "one_after": told(lambda: (dist.barrier(), fails_on(1))[1]),
            "first": told(lambda: (time.sleep(1.0 - rank), fails_on(0, 1))[1]),
            "slow": told(lambda: time.sleep(5.0 * rank)),
            "all_come": come_after(5.0 * rank, apart=60.0),
            "too_late": come_after(5.0 * rank, apart=2.0),
        }
        path = folder / f"{rank}.json"
        path.write_text(json.dumps(found), encoding="utf-8")
        began = time.monotonic()
        found["in_front"] = told(in_front_of_a_collective)
        found["seconds"] = time.monotonic() - began
        path.write_text(json.dumps(found), encoding="utf-8")
        time.sleep(30.0)  # the other one waits for its fault no longer than this one lives


if __name__ == "__main__":
    main(Path(sys.argv[1]))
