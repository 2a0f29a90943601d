"""The model, the data and the processes of tests/gpu: megatron-core runs in processes of its own only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from data_prep.blend import plan
from data_prep.settings import BlendSettings, SourceSettings
from megatron_ipt.fp32 import without_tf32

ROOT: Final = Path(__file__).parents[2]
WORKER: Final = Path(__file__).with_name("worker.py")
REHEARSAL: Final = os.environ.get("IPT_GPU_REHEARSAL") == "1"
VOCABULARY: Final = 512
"""More than the 257 ids that text of bytes has, in a round number."""

GPU_MODEL: Final = {"layers": 8, "hidden": 512, "ffn": 1408, "heads": 8, "groups": 4}
TINY_MODEL: Final = {"layers": 2, "hidden": 64, "ffn": 176, "heads": 4, "groups": 2}
SMOLLM2_135M: Final = {"layers": 30, "hidden": 576, "ffn": 1536, "heads": 9, "groups": 3}
"""The sizes of a real model, 135 million parameters; the weights are drawn."""

Job = tuple[str, Sequence[str]]
"""What the worker does (worker.py), and overrides of the recipe."""


@dataclass(frozen=True)
class Setting:
    """A recipe for a Llama with drawn weights on text of this repository, a byte a token."""

    folder: Path
    hf: Path
    recipe: Path
    batch: int

    def run(
        self, jobs: Mapping[str, Job], *, on: str = "gpu", environment: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """What the worker gives of each job, by name; each job has its own process, in a rehearsal all have one."""
        lots = [dict(jobs)] if REHEARSAL else [{name: job} for name, job in jobs.items()]
        found: dict[str, Any] = {}
        for lot in lots:
            found |= self._process(lot, on, environment or {})
        return found

    def _process(self, jobs: Mapping[str, Job], on: str, more: Mapping[str, str]) -> dict[str, Any]:
        import torch

        out = self.folder / "found.pt"
        named = {name: [kind, [f"output_dir={self.folder / name}", *given]] for name, (kind, given) in jobs.items()}
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if on == "cpu" else {}
        threads = {"OMP_NUM_THREADS": "1"} if REHEARSAL else {}
        path = {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", **path, **threads, **hidden, **more}
        without_tf32(environment)  # as every run of ours
        done = subprocess.run(
            [sys.executable, WORKER, self.recipe, out, json.dumps(named)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
        found: dict[str, Any] = torch.load(out)
        wanted = ("cpu", "local") if REHEARSAL or on == "cpu" else ("cuda", None)
        for name, told in found.items():
            assert "error" not in told, f"{name}: {told['error']}"
            assert told["device"] == wanted[0] and wanted[1] in (None, told["layers"]), (name, told["layers"])
        return found


def make(folder: Path, write_dataset: Callable[..., Any], sizes: Mapping[str, int] | None = None) -> Setting:
    """A setting in `folder`; the model is GPU_MODEL, or TINY_MODEL in a rehearsal, unless `sizes` are given."""
    length, batch = (64, 4) if REHEARSAL else (512, 8)
    hf = folder / "hf"
    save_llama(hf, sizes or (TINY_MODEL if REHEARSAL else GPU_MODEL), length)
    write_dataset(folder / "text", documents(length), vocab_size=VOCABULARY)
    sources = {"text": SourceSettings(prefix=folder / "text", weight=1)}
    plan(BlendSettings(sources=sources, seq_length=length, train_samples=60 * batch), folder / "blend")
    train = {
        "blend": str(folder / "blend" / "blend.json"),
        "global_batch_size": batch,
        "micro_batch_size": batch // 2,
        "seq_length": length,
        "train_iters": 50,
        "lr": 1e-3,
        "lr_warmup_iters": 2,
        "lr_decay_style": "constant",
        "bf16": True,
        "parity_gate": False,
    }
    run = {"name": "gpu", "output_dir": str(folder / "run"), "model": {"load_hf": str(hf)}, "train": train}
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(run), encoding="utf-8")
    return Setting(folder, hf, recipe, batch)


def documents(length: int) -> list[list[int]]:
    """Text of this repository, English and Python, cut at line ends: most documents are shorter than a sequence."""
    files = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "megatron_ipt").rglob("*.py")])
    found: list[list[int]] = []
    pending = b""
    for line in (line for file in files for line in file.read_bytes().splitlines(keepends=True)):
        pending += line
        if len(pending) >= length // 8 * (1 + len(found) % 5):
            found.append([*(byte + 1 for byte in pending), 0])
            pending = b""
    return found


def save_llama(folder: Path, sizes: Mapping[str, int], length: int) -> None:
    """Weights drawn wide enough that logits spread as a trained model's do: a loss of precision shows."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=sizes["hidden"],
        intermediate_size=sizes["ffn"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["groups"],
        max_position_embeddings=max(length, 512),
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        initializer_range=0.04,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)


def steps(on_gpu: int, rehearsed: int) -> str:
    """The override for the length of a run."""
    return f"train.train_iters={rehearsed if REHEARSAL else on_gpu}"


def losses(told: Mapping[str, Any]) -> list[float]:
    return [row["loss"] for row in told["rows"] if row["kind"] == "train"]


def rows_of(told: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    return [row for row in told["rows"] if row["kind"] == kind]


def end_of(series: Sequence[float]) -> float:
    """The mean of the last ten."""
    return float(np.mean(series[-10:]))


def off(found: Any, expected: Any) -> float:
    """How far one tensor is from another, relative to the norm of the latter; not a number counts as infinite."""
    distance = float((found.double() - expected.double()).norm() / expected.double().norm())
    return distance if distance == distance else float("inf")


@cache
def card() -> dict[str, Any]:
    """Name and compute capability of the GPU and whether Transformer Engine is installed, asked in a process."""
    code = "import importlib.util as u, json, torch; here = torch.cuda.is_available(); print(json.dumps({"
    code += "'name': torch.cuda.get_device_name() if here else None, "
    code += "'capability': list(torch.cuda.get_device_capability()) if here else None, "
    code += "'engine': u.find_spec('transformer_engine') is not None}))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(told.stdout)
    return found
