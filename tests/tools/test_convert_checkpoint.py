"""tools/convert_checkpoint.py by the flags of Megatron's converter: there and back, the same tensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forks import environment, warm_python
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

TOOL = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"
GPT = ["--model-type", "GPT"]


def tool(*arguments: object, fresh: bool = False) -> subprocess.CompletedProcess[str]:
    """`fresh`, with all of its imports, as a user starts it."""
    command = [sys.executable if fresh else warm_python(), TOOL, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment("megatron"))


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "hf"
    torch.manual_seed(5)
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).to(torch.float32).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "x"}')
    return folder


def test_there_and_back(hf: Path, tmp_path: Path) -> None:
    there = ["--loader", "llama_mistral", "--saver", "mcore", "--checkpoint-type", "hf", "--bf16"]
    done = tool(*GPT, *there, "--load-dir", hf, "--save-dir", tmp_path / "c", "--tokenizer-model", hf)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "c" / "iter_0000000").is_dir()
    back = ["--loader", "mcore", "--saver", "hf", "--tokenizer-model", hf]
    done = tool(*GPT, *back, "--load-dir", tmp_path / "c", "--save-dir", tmp_path / "new", fresh=True)
    assert done.returncode == 0, done.stderr
    assert "config.json: dtype float32 -> bfloat16" in done.stderr
    before, after = load_file(hf / "model.safetensors"), load_file(tmp_path / "new" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].bfloat16(), after[name]) for name in before)
    assert (tmp_path / "new" / "tokenizer_config.json").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--model-type", "BERT"], "--model-type BERT: not supported; give GPT"),
        (["--loader", "mixtral_hf"], "--loader mixtral_hf: not supported; legal: core, hf, llama"),
        (["--loader", "core"], "--loader core --saver mcore: both name the same side"),
        (["--checkpoint-type", "meta"], "--checkpoint-type meta: not supported"),
        (["--tokenizer-model", "t.model"], "--tokenizer-model t.model: a checkpoint holds no tokenizer; drop it"),
        (
            ["--target-tensor-parallel-size", 8, "--target-pipeline-parallel-size", 2, "--model-size", "llama3"],
            "--target-tensor-parallel-size, --target-pipeline-parallel-size, --model-size: not taken here; a "
            "checkpoint loads in any layout: drop it; read from config.json: drop it",
        ),
        (["--load-dir", "nowhere"], "nowhere"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_line(hf: Path, tmp_path: Path, more: list[object], told: str) -> None:
    sides = ["--loader", "hf", "--saver", "mcore", "--load-dir", hf, "--save-dir", tmp_path / "c"]
    done = tool(*GPT, *sides, *more)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ") and told in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_says_what_there_is() -> None:
    done = tool("--help")
    assert done.returncode == 0
    assert "--loader" in done.stdout and "ipt convert parity" in done.stdout
