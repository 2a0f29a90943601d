"""A tiny model, its data, and real processes that train it.

megatron-core runs in processes of its own only: its CPU shim would reach transformers here, the oracle.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from forks import environment, run_forked, warm_python

from data_prep.blend import plan
from data_prep.settings import BlendSettings, SourceSettings

WORKER = Path(__file__).with_name("worker.py")
SEQ_LENGTH = 64
VOCABULARY = 512


@dataclass(frozen=True)
class TinyRun:
    """A recipe for a tiny Llama, and the folders it reads: `hf` (weights), `init` (the same as a checkpoint)."""

    folder: Path
    hf: Path
    init: Path
    recipe: Path
    blend: Path


def ipt(*arguments: object, check: bool = True, fresh: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does; `fresh`, with all of its imports and its children's."""
    command = [sys.executable if fresh else warm_python(), "-m", "megatron_ipt.cli.main", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def ipts(
    folder: Path, commands: Mapping[str, Sequence[object]], warm: str = "plain"
) -> dict[str, subprocess.CompletedProcess[str]]:
    """`ipt` for several commands (name -> arguments) in one process; `folder` is for its answer."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs, out = [[*map(str, arguments)] for arguments in commands.values()], folder / "told.json"
    worker = Path(__file__).with_name("cli_worker.py")
    done = subprocess.run(
        [warm_python(), worker, json.dumps(jobs), out],
        capture_output=True,
        text=True,
        env=environment(warm),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text(encoding="utf-8"))
    return {
        name: subprocess.CompletedProcess(job, *found) for name, job, found in zip(commands, jobs, told, strict=True)
    }


def run_ranks(processes: int, *arguments: object) -> None:
    """A script on several ranks, as `torchrun --nproc-per-node` starts it, but forked: see warm/server.py."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # the ranks' own, as torchrun's agent has
    place = {**environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(processes)}
    place |= {"LOCAL_WORLD_SIZE": str(processes), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    place |= {"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_RUN_ID": "none"}
    ranks = [{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    run_forked(arguments, ranks)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, write_dataset: Any) -> TinyRun:
    folder = tmp_path_factory.mktemp("tiny")
    hf = folder / "hf"
    _save_llama(hf)
    blend = folder / "blend" / "blend.json"
    _write_data(folder, blend, write_dataset)
    recipe = folder / "recipe.yaml"
    train = {
        "blend": str(blend),
        "held_out": str(folder / "held_out"),
        "eval_iters": 1,
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "seq_length": SEQ_LENGTH,
        "train_iters": 10,
        "lr": 1e-3,
        "lr_decay_style": "constant",
        "bf16": False,
    }
    run = {"name": "tiny", "output_dir": str(folder / "run"), "model": {"load_hf": str(hf)}, "train": train}
    recipe.write_text(yaml.safe_dump(run), encoding="utf-8")
    init = folder / "init"
    ipt("convert", "import", hf, init, "--fp32")
    return TinyRun(folder, hf, init, recipe, blend)


@pytest.fixture(scope="session")
def train_layouts(tiny: TinyRun) -> Callable[..., dict[str, Any]]:
    """Run several recipes (name -> overrides) one after another in one process group; name -> metrics rows or error.

    Those of `alone` are run last, by one process.
    """

    def run(
        processes: int, jobs: Mapping[str, Sequence[str]], alone: Mapping[str, Sequence[str]] | None = None
    ) -> dict[str, Any]:
        taken = [name for name in (*jobs, *(alone or {})) if (tiny.folder / name).exists()]
        assert not taken, f"{taken} are runs of another file: they would go on, not begin"
        out = tiny.folder / f"jobs-{processes}-{abs(hash(tuple(jobs)))}.json"
        told = [
            json.dumps({name: [f"output_dir={tiny.folder / name}", *given] for name, given in these.items()})
            for these in (jobs, alone or {})
        ]
        run_ranks(processes, WORKER, tiny.recipe, out, *told)
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found

    return run


def losses(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [row["loss"] for row in rows if row["kind"] == "train"]


def with_byte_tokenizer(hf: Path, out: Path) -> Path:
    """A copy of a model with a tokenizer in which a token is a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    shutil.copytree(hf, out)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eod>": 0, **{letter: index + 1 for index, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eod>", bos_token="<eod>").save_pretrained(out)
    return out


def _save_llama(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)


def _write_data(folder: Path, blend: Path, write_dataset: Any) -> None:
    """Two sources of counting sequences, so that there is something to learn, and a held-out one."""
    generator = np.random.default_rng(3)

    def documents(count: int, step: int) -> list[list[int]]:
        starts, lengths = generator.integers(1, VOCABULARY, count), generator.integers(5, 90, count)
        return [
            [*((start + step * np.arange(length)) % (VOCABULARY - 1) + 1).tolist(), 0]
            for start, length in zip(starts, lengths, strict=True)
        ]

    for name, step, count in (("one", 1, 60), ("three", 3, 7), ("held_out", 1, 12)):
        write_dataset(folder / name, documents(count, step), vocab_size=VOCABULARY)
    sources = {name: SourceSettings(prefix=folder / name, weight=weight) for name, weight in (("one", 3), ("three", 1))}
    # A test scores one of the sources as a held-out set.
    plan(BlendSettings(sources=sources, seq_length=SEQ_LENGTH, train_samples=80, allow=("held_out",)), blend.parent)


def run_python(code: str, *arguments: str) -> object:
    """Run code in a fresh process, for what `forks.forked_python` cannot show; it prints JSON last."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])
