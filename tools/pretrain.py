#!/usr/bin/env python3
"""One rank of a training run, under the name that Megatron's users look for.

    torchrun --nproc-per-node 2 tools/pretrain.py --recipe recipe.yaml train.train_iters=60

is `torchrun ... -m megatron_ipt.pretrain`.
"""

import typer

from megatron_ipt.pretrain import main

if __name__ == "__main__":
    typer.run(main)
