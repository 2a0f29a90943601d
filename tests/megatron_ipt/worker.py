"""Run by torchrun: several training runs in one process group, each its own layout.

    torchrun worker.py RECIPE OUT.json '{"name": ["train.tensor_model_parallel_size=2", ...], ...}'

An override `swap_heads` puts two query heads of every layer in each other's place while weights are loaded.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from megatron_ipt.recipe import load_recipe


def run(recipe: Path, overrides: list[str]) -> Any:
    from recorded import train

    from megatron_ipt.convert import load_hf

    fuse = load_hf.fuse_qkv
    if "swap_heads" in overrides:

        def swapped(query: Any, key: Any, value: Any, width: int) -> Any:
            order = [*range(width, 2 * width), *range(width), *range(2 * width, len(query))]
            return fuse(query[order], key, value, width)

        load_hf.fuse_qkv = swapped
    try:
        return train(load_recipe(recipe, [item for item in overrides if "=" in item]))
    except UserError as error:
        return {"error": str(error)}
    finally:
        load_hf.fuse_qkv = fuse


def main() -> None:
    import torch.distributed as dist

    from megatron_ipt.mcore import parallel

    logging.basicConfig(level=logging.WARNING)
    recipe, out, jobs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    with parallel.distributed():
        found = {name: run(recipe, overrides) for name, overrides in jobs.items()}
        if dist.get_rank() == 0:
            out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
