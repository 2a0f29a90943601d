"""The oracle: the same batches through transformers and torch's AdamW in one process, nothing of ours but the data.

python plain_loop.py HF_DIRECTORY BLEND.json STEPS GLOBAL_BATCH_SIZE LR OUT.json [bfloat16]
python plain_loop.py OUT.json '{"name": {"hf": ..., "blend": ..., "sizes": [8, 8, ...], "lr": 1e-3, "skip": [3]}, ...}'

With bfloat16 the model computes in it, and AdamW updates fp32 masters of the weights that it has.  `sizes` is the batch
of each step; in the steps of `skip`, counted from 1, no update is made.  `lr` is one rate, or that of each step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from megatron_ipt.data.stream import BlendStream


def train(
    hf: str,
    blend: str,
    sizes: Sequence[int],
    lr: float | Sequence[float],
    skip: Collection[int] = (),
    dtype: str = "float32",
) -> dict[str, list[Any]]:
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=getattr(torch, dtype)).train()
    weights = list(model.parameters())
    masters = [p.detach().float().requires_grad_() for p in weights] if dtype != "float32" else weights
    groups = [
        {"params": [p for p in masters if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in masters if p.dim() == 1], "weight_decay": 0.0},
    ]
    rates = [lr] * len(sizes) if isinstance(lr, float) else lr
    optimizer = torch.optim.AdamW(groups, lr=rates[0], betas=(0.9, 0.95), eps=1e-8)
    stream, first = BlendStream(Path(blend)), 0
    losses, norms, counted, by_source = [], [], [], []
    for step, (size, rate) in enumerate(zip(sizes, rates, strict=True), 1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        samples = [stream.sample(index) for index in range(first, first + size)]
        first += size
        tokens, labels, mask = (
            torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))
            for name in ("tokens", "labels", "loss_mask")
        )
        logits = model(tokens).logits.float()
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        loss = (each * mask.flatten()).sum() / mask.sum()
        model.zero_grad()
        loss.backward()
        for master, weight in zip(masters, weights, strict=True):
            assert weight.grad is not None
            master.grad = weight.grad.float()
        norms.append(float(torch.nn.utils.clip_grad_norm_(masters, 1.0)))
        if step not in skip:
            optimizer.step()
            with torch.no_grad():
                for master, weight in zip(masters, weights, strict=True):
                    weight.copy_(master)
        losses.append(float(loss))
        sums = (each.detach().view_as(mask) * mask).sum(1)
        own = {name: [sample.source == name for sample in samples] for name in {sample.source for sample in samples}}
        by_source.append({name: float(sums[rows].sum() / mask[rows].sum()) for name, rows in own.items()})
        counted.append(mask.sum(1).tolist())
    return {"losses": losses, "norms": norms, "counted": counted, "by_source": by_source}


def main(hf: str, blend: str, steps: str, batch_size: str, lr: str, out: str, dtype: str = "float32") -> None:
    found = train(hf, blend, [int(batch_size)] * int(steps), float(lr), dtype=dtype)
    Path(out).write_text(json.dumps(found), encoding="utf-8")


def several(out: str, jobs: str) -> None:
    found = {name: train(**job) for name, job in json.loads(jobs).items()}
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    (several if len(sys.argv) == 3 else main)(*sys.argv[1:])
