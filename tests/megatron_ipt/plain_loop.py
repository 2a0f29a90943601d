"""The oracle: the same batches through transformers and torch's AdamW in one process, nothing of ours but the data.

python plain_loop.py HF_DIRECTORY BLEND.json STEPS GLOBAL_BATCH_SIZE LR OUT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from megatron_ipt.data.stream import BlendStream


def main(hf: str, blend: str, steps: str, batch_size: str, lr: str, out: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).train()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=float(lr), betas=(0.9, 0.95), eps=1e-8)
    stream, size = BlendStream(Path(blend)), int(batch_size)
    losses, norms = [], []
    for step in range(int(steps)):
        samples = [stream.sample(index) for index in range(step * size, (step + 1) * size)]
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
        optimizer.step()
        losses.append(float(loss))
    Path(out).write_text(json.dumps({"losses": losses, "norms": norms}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
