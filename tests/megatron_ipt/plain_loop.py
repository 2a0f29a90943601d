"""The oracle: the same batches through transformers and torch's AdamW in one process, nothing of ours but the data.

python plain_loop.py HF_DIRECTORY BLEND.json STEPS GLOBAL_BATCH_SIZE LR OUT.json
python plain_loop.py OUT.json '{"name": {"hf": ..., "blend": ..., "sizes": [8, 8, ...], "lr": 1e-3, "skip": [3]}, ...}'

`sizes` is the batch of each step; in the steps of `skip`, counted from 1, no update is made.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from megatron_ipt.data.stream import BlendStream


def train(hf: str, blend: str, sizes: Sequence[int], lr: float, skip: Collection[int] = ()) -> dict[str, list[float]]:
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).train()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8)
    stream, first = BlendStream(Path(blend)), 0
    losses, norms, counted = [], [], []
    for step, size in enumerate(sizes, 1):
        samples = [stream.sample(index) for index in range(first, first + size)]
        first += size
        tokens, labels, mask = (
            torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))
            for name in ("tokens", "labels", "loss_mask")
        )
        logits = model(tokens).logits
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        loss = (each * mask.flatten()).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        if step not in skip:
            optimizer.step()
        losses.append(float(loss))
        counted.append(mask.sum(1).tolist())
    return {"losses": losses, "norms": norms, "counted": counted}


def main(hf: str, blend: str, steps: str, batch_size: str, lr: str, out: str) -> None:
    found = train(hf, blend, [int(batch_size)] * int(steps), float(lr))
    Path(out).write_text(json.dumps(found), encoding="utf-8")


def several(out: str, jobs: str) -> None:
    found = {name: train(**job) for name, job in json.loads(jobs).items()}
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    (several if len(sys.argv) == 3 else main)(*sys.argv[1:])
