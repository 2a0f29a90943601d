"""--deterministic: what the workers' environment gets, against megatron-core's own check of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import run_python
from typer.testing import CliRunner

from data_prep.errors import UserError
from megatron_ipt.cli import main, processes
from megatron_ipt.training import determinism

GIVEN = [
    {},
    {"NCCL_ALGO": "CollnetDirect, Ring"},
    {"NCCL_ALGO": "^NVLS", "CUBLAS_WORKSPACE_CONFIG": ":16:8"},
    {"NCCL_ALGO": "Ring,Tree"},
    {"CUBLAS_WORKSPACE_CONFIG": ":4096:2"},
    {"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "1"},
    {"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"},
]
MEGATRONS = """
import importlib.util, json, sys
from pathlib import Path
# the file alone: its package imports all of megatron.training
folder = Path(importlib.util.find_spec("megatron.core").origin).parents[1]
spec = importlib.util.spec_from_file_location("determinism", folder / "training" / "determinism.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
found = []
for environment in json.loads(sys.argv[1]):
    try:
        module.apply_determinism_env(environment)
        found.append(environment)
    except AssertionError:
        found.append(None)
print(json.dumps(found))
"""


def test_the_environment_is_what_megatron_sets_and_refuses() -> None:
    found: list[Any] = []
    for given in GIVEN:
        environment = dict(given)
        try:
            determinism.prepare(environment)
            found.append(environment)
        except UserError:
            found.append(None)
    assert found == run_python(MEGATRONS, json.dumps(GIVEN))
    assert found.count(None) == 3


def test_the_flag_reaches_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    @contextmanager
    def child(command: list[str], environment: dict[str, str], stderr: Any) -> Iterator[Any]:
        started.append((command, environment))
        yield SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(processes, "child", child)
    numbers = {"num_layers": 2, "hidden_size": 8, "ffn_hidden_size": 8, "num_attention_heads": 2, "vocab_size": 16}
    train = {"seq_length": 8, "train_iters": 1, "global_batch_size": 1, "lr": 1e-3}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": "x", "output_dir": str(tmp_path), "model": numbers, "train": train}))
    done = CliRunner().invoke(main.app, ["train", str(recipe), "--deterministic"])
    assert done.exit_code == 0, done.output
    ((command, environment),) = started
    assert "train.deterministic_mode=true" in command
    assert environment["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8" and environment["NCCL_ALGO"] == "Ring"


def test_fp32_is_whole_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before torch is loaded, by the command and by torchrun's own ranks, which is when NVIDIA's libraries read it."""
    code = """
import os, sys
if sys.argv[1] == "command":
    from megatron_ipt.cli import main
    main.app = lambda **_: None
    main.main()
else:
    from pathlib import Path
    from megatron_ipt import pretrain
    from data_prep.errors import UserError
    def load_recipe(*_): raise SystemExit(0)
    pretrain.load_recipe = load_recipe
    try: pretrain.main(Path("x"), None)
    except SystemExit: pass
print(f'"{os.environ["NVIDIA_TF32_OVERRIDE"]} {"torch" in sys.modules}"')
"""
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    assert [run_python(code, part) for part in ("command", "rank")] == ["0 False"] * 2
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert run_python(code, "rank") == "1 False"
