"""Hugging Face -> checkpoint -> Hugging Face, bit for bit; and checkpoints that are not what they were."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyRun, ipts
from safetensors.torch import load_file, save_file

BAD_DIRECTORIES = {
    "missing_tensor": "tensor 'model.layers.2.mlp.up_proj.weight' is missing",
    "further_tensor": "tensor 'model.layers.2.self_attn.q_proj.bias' is of no use to a model of family llama",
    "unknown_family": "model_type 'gpt2' is not supported",
    "wrong_shape": "expected (160, 64)",
    "no_directory": "config.json is missing",
}
BAD_CHECKPOINTS = {
    "flipped": "not as it was written",
    "planted_file": "does not list this file",
    "planted_metadata": "not as it was written",
    "none": "no checkpoint there",
}


def break_directory(hf: Path, fault: str) -> None:
    config = json.loads((hf / "config.json").read_text())
    tensors = load_file(hf / "model.safetensors")
    if fault == "missing_tensor":
        save({name: value for name, value in tensors.items() if "layers.2.mlp.up" not in name}, hf)
    elif fault == "further_tensor":
        save({**tensors, "model.layers.2.self_attn.q_proj.bias": torch.zeros(64)}, hf)
    elif fault == "wrong_shape":
        (hf / "config.json").write_text(json.dumps({**config, "intermediate_size": 160}))
    elif fault == "unknown_family":
        (hf / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    elif fault == "no_directory":
        shutil.rmtree(hf)


def break_checkpoint(checkpoint: Path, fault: str, proof: Path) -> None:
    """`proof` is what a planted pickle touches when it is opened."""

    class Plant:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (proof,)  # type: ignore[return-value]

    if fault == "flipped":
        shard = next(checkpoint.glob("*.distcp"))
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    elif fault == "planted_file":
        (checkpoint / "common.pt").write_bytes(pickle.dumps(Plant()))
    elif fault == "planted_metadata":
        (checkpoint / ".metadata").write_bytes(pickle.dumps(Plant()))
    elif fault == "none":
        shutil.rmtree(checkpoint.parent)


def save(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("convert")


@pytest.fixture(scope="module")
def told(tiny: TinyRun, folder: Path) -> dict[str, Any]:
    """What each command said: the exports, the comparisons, and each of the faults."""
    other = folder / "other"
    shutil.copytree(tiny.hf, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"] *= 1.01
    save(tensors, other)
    (folder / "precious").mkdir()
    (folder / "precious" / "thesis.txt").touch()
    export = ("convert", "export", tiny.init)
    commands: dict[str, tuple[object, ...]] = {
        "export": (*export, folder / "exported", "--source", tiny.hf, "--dtype", "bfloat16"),
        "export_again": (*export, folder / "exported", "--source", tiny.hf, "--dtype", "bfloat16"),
        "over": (*export, folder / "precious"),
        "like": ("convert", "parity", tiny.hf, tiny.init),
        "unlike": ("convert", "parity", other, tiny.init),
    }
    for fault in BAD_DIRECTORIES:
        shutil.copytree(tiny.hf, folder / fault)
        break_directory(folder / fault, fault)
        commands[fault] = ("convert", "import", folder / fault, folder / f"{fault}_out")
    for fault in BAD_CHECKPOINTS:
        shutil.copytree(tiny.init, folder / fault)
        break_checkpoint(folder / fault / "iter_0000000", fault, folder / "touched")
        commands[fault] = ("convert", "export", folder / fault, folder / f"{fault}_out")
    return ipts(folder / "told", commands, "megatron")


def test_a_round_trip_gives_the_same_tensors(tiny: TinyRun, told: Any, folder: Path) -> None:
    assert (told["export"].returncode, told["export_again"].returncode) == (0, 0)
    before, after = load_file(tiny.hf / "model.safetensors"), load_file(folder / "exported" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor.bfloat16(), after[name]), name


def test_the_sources_config_is_kept_but_for_the_dtype(tiny: TinyRun, told: Any, folder: Path) -> None:
    before, after = (json.loads((path / "config.json").read_text()) for path in (tiny.hf, folder / "exported"))
    assert {name for name in before if before[name] != after[name]} == {"dtype"}
    assert after["dtype"] == "bfloat16"
    assert "config.json: dtype float32 -> bfloat16" in told["export"].stdout


def test_an_export_deletes_nothing_that_it_did_not_write(told: Any, folder: Path) -> None:
    assert told["over"].returncode == 1
    assert "holds what no export writes (thesis.txt)" in told["over"].stderr
    assert [path.name for path in (folder / "precious").iterdir()] == ["thesis.txt"]


def test_parity_of_a_checkpoint_and_its_source(told: Any) -> None:
    assert told["like"].returncode == 0
    assert "max |dlogit|" in told["like"].stdout
    assert "differ" not in told["like"].stdout


def test_parity_names_the_first_layer_that_differs(told: Any) -> None:
    """One layer's weight is another: the layers before it are the same, those behind it are fed otherwise."""
    done = told["unlike"]
    assert done.returncode == 1
    assert "first to differ: layer 2" in " ".join(done.stdout.split())
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("fault", [*BAD_DIRECTORIES, *BAD_CHECKPOINTS])
def test_bad_input_is_told_in_one_line_and_nothing_is_written(fault: str, told: Any, folder: Path) -> None:
    done = told[fault]
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert {**BAD_DIRECTORIES, **BAD_CHECKPOINTS}[fault] in last
    assert not (folder / f"{fault}_out").exists()


def test_a_planted_pickle_is_not_opened(told: Any, folder: Path) -> None:
    assert all(told[fault].returncode == 1 for fault in ("planted_file", "planted_metadata"))
    assert not (folder / "touched").exists()
