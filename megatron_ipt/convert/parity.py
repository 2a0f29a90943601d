"""The gate before step 1: do both programs compute the same logits from the same weights?

A loss alone is blind: a wrong rms epsilon moves it by 5e-5, while a right model in bf16 differs by up to 1.6e-3.
So logits are compared too, in fp32, on at least 512 tokens of a fixed page (parity_text.txt).  A right model has
|dloss| <= 1e-5 and max |dlogit| <= 1e-3; swapped heads or a wrong rope theta give 7e-3 and more.

A model that fits in bf16 alone is compared in bf16, by |dloss| and KL <= 5e-3 (a right one: 1e-3).  That finds weights
in the wrong place; a wrong epsilon it does not find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.convert.families import read_architecture
from megatron_ipt.convert.load_hf import load_hf
from megatron_ipt.convert.models import OpenModel, is_checkpoint, open_model
from megatron_ipt.convert.reference import (
    TOKENS,
    Outputs,
    Precision,
    count_for,
    fixed_tokens,
    transformers_outputs,
    watched,
)
from megatron_ipt.mcore import config as configs
from megatron_ipt.mcore import device, kernels
from megatron_ipt.mcore import model as models
from megatron_ipt.mcore.contradiction import refuse
from megatron_ipt.mcore.plain import plain
from megatron_ipt.settings import TrainSettings

LIMITS: Final[dict[Precision, dict[str, float]]] = {
    "float32": {"dloss": 1e-5, "max_dlogit": 1e-3},
    "bfloat16": {"dloss": 5e-3, "kl": 5e-3},
}
OF_A_LAYER: Final[dict[Precision, float]] = {"float32": 1e-4, "bfloat16": 5e-2}
"""From which relative difference of its outputs (of their norms) a layer differs."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far two models are apart on the same tokens: losses in nats a token, logits, mean KL(a || b) in nats.

    `differs` is the first part of the model whose outputs differ; empty where none does, or where nobody looked.
    """

    tokens: int
    loss_a: float
    loss_b: float
    max_dlogit: float
    mean_dlogit: float
    kl: float
    precision: Precision = "float32"
    differs: str = ""

    @property
    def dloss(self) -> float:
        return abs(self.loss_a - self.loss_b)

    @property
    def passed(self) -> bool:
        return all(getattr(self, name) <= limit for name, limit in LIMITS[self.precision].items())

    def to_json(self) -> dict[str, float | bool | str]:
        return {**asdict(self), "dloss": self.dloss, "passed": self.passed}

    def __str__(self) -> str:
        limits = {name: f" (limit {limit:.0e})" for name, limit in LIMITS[self.precision].items()}
        figures = (("dloss", "|dloss|"), ("max_dlogit", "max |dlogit|"), ("mean_dlogit", "mean"), ("kl", "KL"))
        told = ", ".join(f"{word} {getattr(self, name):.1e}{limits.get(name, '')}" for name, word in figures)
        where = f"; first to differ: {self.differs}" if self.differs else ""
        return f"{told} on {self.tokens} tokens in {self.precision}{where}"


def compare(a: torch.Tensor, b: torch.Tensor, tokens: torch.Tensor, precision: Precision = "float32") -> Parity:
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
        precision=precision,
    )


def first_difference(a: Outputs, b: Outputs, precision: Precision) -> str:
    """The first of embedding, layers (from 0) and head whose outputs differ by more than OF_A_LAYER; empty if none."""
    assert a.states is not None and b.states is not None
    if a.states.shape != b.states.shape:
        (layers_a, _, width_a), (layers_b, _, width_b) = a.states.shape, b.states.shape
        return f"the shape, {layers_a - 1} layers of {width_a} against {layers_b - 1} of {width_b}"
    names = ["the embedding", *(f"layer {index}" for index in range(len(a.states) - 1)), "the last norm or the output"]
    for name, one, other in zip(names, [*a.states, a.logits], [*b.states, b.logits], strict=True):
        # not `>`: what is no number differs too
        if not float((one.double() - other.double()).norm()) <= OF_A_LAYER[precision] * float(one.double().norm()):
            return name
    return ""


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
    """Load `directory` under the run's own layout and compare with transformers; UserError if unlike.

    Both compute in train.parity_precision.  All ranks call it.  The model it builds is gone when it returns.
    """
    precision = train.parity_precision
    # the run's own settings, but for number formats: what the gate passes must be what trains
    if device.transformer_impl(train.transformer_impl) == "transformer_engine":
        refuse(kernels.of_the_gate(train))
    exact = plain(train).model_copy(update={"bf16": precision == "bfloat16"})
    chunks = models.build(architecture, configs.transformer_config(architecture, exact), exact, vocab_size)
    load_hf(chunks, directory, architecture)
    tokens = fixed_tokens(directory, architecture.vocab_size, count_for(train))
    ours = megatron_logits(chunks, tokens, exact, architecture.vocab_size)
    del chunks
    last = dist.get_world_size() - 1  # the last rank is always on the last stage
    result: list[Parity | UserError | None] = [None]
    if dist.get_rank() == last:
        assert ours is not None
        try:
            result[0] = compare(ours, transformers_outputs(directory, tokens, precision).logits, tokens, precision)
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


def parity(a: Path, b: Path, precision: Precision = "float32") -> Parity:
    """Compare two models: a Hugging Face directory is run by transformers, a checkpoint by megatron-core."""
    tokenizer = next((path for path in (a, b) if (path / "tokenizer.json").exists()), a)
    outputs: list[Outputs] = []
    tokens = torch.empty(0)
    for path in (a, b):
        if is_checkpoint(path):
            with open_model(path, bf16=precision == "bfloat16", seq_length=TOKENS) as opened:
                tokens = fixed_tokens(tokenizer, opened.architecture.vocab_size)
                outputs.append(_outputs_of(opened, tokens))
        else:
            tokens = fixed_tokens(tokenizer, read_architecture(path).vocab_size)
            outputs.append(transformers_outputs(path, tokens, precision, states=True))
    one, other = outputs
    if one.logits.shape != other.logits.shape:
        problem = f"vocabulary {other.logits.shape[1]} is unlike {one.logits.shape[1]} of {a}"
        raise UserError(b, problem, "compare like models")
    found = compare(one.logits, other.logits, tokens, precision)
    return replace(found, differs=first_difference(one, other, precision))


def _outputs_of(opened: OpenModel, tokens: torch.Tensor) -> Outputs:
    model = models.unwrap(opened.chunks[0])
    with watched([model.embedding, *model.decoder.layers]) as states:
        logits = megatron_logits(opened.chunks, tokens, opened.train, opened.architecture.vocab_size)
    assert logits is not None
    return Outputs(logits, torch.stack(states))
