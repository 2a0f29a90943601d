"""The gate before step 1: do both programs compute the same logits from the same weights?

A loss alone is blind: a wrong rms epsilon moves it by 5e-5, while a right model in bf16 differs by up to 1.6e-3.
So logits are compared too, in fp32, on at least 512 tokens of a fixed page (parity_text.txt).  A right model has
|dloss| <= 1e-5 and max |dlogit| <= 1e-3; swapped heads or a wrong rope theta give 7e-3 and more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.convert.families import read_architecture
from megatron_ipt.convert.load_hf import load_hf
from megatron_ipt.convert.models import OpenModel, is_checkpoint, open_model
from megatron_ipt.convert.reference import TOKENS, fixed_tokens, transformers_logits
from megatron_ipt.mcore import config as configs
from megatron_ipt.mcore import model as models
from megatron_ipt.settings import TrainSettings

MAX_DLOSS = 1e-5
MAX_DLOGIT = 1e-3


@dataclass(frozen=True, slots=True)
class Parity:
    """How far two models are apart on the same tokens: losses in nats a token, logits, mean KL(a || b) in nats."""

    tokens: int
    loss_a: float
    loss_b: float
    max_dlogit: float
    mean_dlogit: float
    kl: float

    @property
    def dloss(self) -> float:
        return abs(self.loss_a - self.loss_b)

    @property
    def passed(self) -> bool:
        return self.dloss <= MAX_DLOSS and self.max_dlogit <= MAX_DLOGIT

    def to_json(self) -> dict[str, float | bool]:
        return {**asdict(self), "dloss": self.dloss, "passed": self.passed}

    def __str__(self) -> str:
        return (
            f"|dloss| {self.dloss:.1e} (limit {MAX_DLOSS:.0e}), max |dlogit| {self.max_dlogit:.1e} "
            f"(limit {MAX_DLOGIT:.0e}), mean {self.mean_dlogit:.1e}, KL {self.kl:.1e} on {self.tokens} tokens"
        )


def compare(a: torch.Tensor, b: torch.Tensor, tokens: torch.Tensor) -> Parity:
    """Compare logits [tokens, vocabulary] of two models on `tokens`; every mean is taken in double."""
    a, b = a.double(), b.double()
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    labels = tokens[1:, None]
    difference = (a - b).abs()
    return Parity(
        tokens=len(tokens),
        loss_a=float(-log_a[:-1].gather(1, labels).mean()),
        loss_b=float(-log_b[:-1].gather(1, labels).mean()),
        max_dlogit=float(difference.max()),
        mean_dlogit=float(difference.mean()),
        kl=float((log_a.exp() * (log_a - log_b)).sum(-1).mean()),
    )


def megatron_logits(
    chunks: Sequence[torch.nn.Module], tokens: torch.Tensor, train: TrainSettings, vocab_size: int
) -> torch.Tensor | None:
    """Logits [tokens, true vocabulary] on the CPU, on ranks of the last stage; None elsewhere."""
    row = tokens[None].to(next(chunks[0].parameters()).device)
    positions = torch.arange(len(tokens), device=row.device)[None]
    batch = {"tokens": row, "labels": row, "position_ids": positions, "loss_mask": torch.ones_like(row)}
    out = models.logits(chunks, batch, train)
    return None if out is None else out[0, :, :vocab_size].float().cpu()


def gate(directory: Path, architecture: Architecture, train: TrainSettings, vocab_size: int) -> Parity:
    """Load `directory` in fp32 under the run's own layout and compare with transformers; UserError if unlike.

    All ranks call it.  The model it builds is gone when it returns.
    """
    # the run's own settings, but for number formats: what the gate passes must be what trains
    own = {name: value for name, value in train.transformer_config.items() if not name.startswith(("fp8", "fp4"))}
    exact = train.model_copy(update={"bf16": False, "transformer_config": own})
    chunks = models.build(architecture, configs.transformer_config(architecture, exact), exact, vocab_size)
    load_hf(chunks, directory, architecture)
    tokens = fixed_tokens(directory, architecture.vocab_size)
    ours = megatron_logits(chunks, tokens, exact, architecture.vocab_size)
    del chunks
    last = dist.get_world_size() - 1  # the last rank is always on the last stage
    result: list[Parity | UserError | None] = [None]
    if dist.get_rank() == last:
        assert ours is not None
        try:
            result[0] = compare(ours, transformers_logits(directory, tokens), tokens)
        except UserError as error:
            result[0] = error
    dist.broadcast_object_list(result, src=last)
    found = result[0]
    if isinstance(found, UserError):
        raise found
    assert found is not None
    if not found.passed:
        raise UserError(
            directory,
            f"this model does not compute what transformers computes from the same weights: {found}",
            "remove model.* settings that are not in its config.json; `ipt convert parity` shows more",
        )
    return found


def parity(a: Path, b: Path) -> Parity:
    """Compare two models: a Hugging Face directory is run by transformers, a checkpoint by megatron-core."""
    tokenizer = next((path for path in (a, b) if (path / "tokenizer.json").exists()), a)
    logits: list[torch.Tensor] = []
    tokens = torch.empty(0)
    for path in (a, b):
        if is_checkpoint(path):
            with open_model(path, bf16=False, seq_length=TOKENS) as opened:
                tokens = fixed_tokens(tokenizer, opened.architecture.vocab_size)
                logits.append(_logits_of(opened, tokens))
        else:
            tokens = fixed_tokens(tokenizer, read_architecture(path).vocab_size)
            logits.append(transformers_logits(path, tokens))
    if logits[0].shape != logits[1].shape:
        raise UserError(
            b, f"vocabulary {logits[1].shape[1]} is unlike {logits[0].shape[1]} of {a}", "compare like models"
        )
    return compare(logits[0], logits[1], tokens)


def _logits_of(opened: OpenModel, tokens: torch.Tensor) -> torch.Tensor:
    found = megatron_logits(opened.chunks, tokens, opened.train, opened.architecture.vocab_size)
    assert found is not None
    return found
