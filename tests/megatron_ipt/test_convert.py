"""Hugging Face -> checkpoint -> Hugging Face, bit for bit; and checkpoints that are not what they were."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TinyRun, ipt
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def exported(tiny: TinyRun) -> Path:
    out = tiny.folder / "exported"
    ipt("convert", "export", tiny.init, out, "--source", tiny.hf, "--dtype", "bfloat16")
    return out


def test_a_round_trip_gives_the_same_tensors(tiny: TinyRun, exported: Path) -> None:
    before, after = load_file(tiny.hf / "model.safetensors"), load_file(exported / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor.bfloat16(), after[name]), name


def test_the_sources_config_is_kept_but_for_the_dtype(tiny: TinyRun, exported: Path) -> None:
    before, after = (json.loads((path / "config.json").read_text()) for path in (tiny.hf, exported))
    assert {name for name in before if before[name] != after[name]} == {"dtype"}
    assert after["dtype"] == "bfloat16"


def test_parity_of_a_checkpoint_and_its_source(tiny: TinyRun) -> None:
    done = ipt("convert", "parity", tiny.hf, tiny.init)
    assert "max |dlogit|" in done.stdout
    assert "differ" not in done.stdout


def test_parity_names_the_first_layer_that_differs(tiny: TinyRun, tmp_path: Path) -> None:
    """One layer's weight is another: the layers before it are the same, those behind it are fed otherwise."""
    other = tmp_path / "other"
    shutil.copytree(tiny.hf, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"] *= 1.01
    _save(tensors, other)
    done = ipt("convert", "parity", other, tiny.init, check=False)
    assert done.returncode == 1
    assert "first to differ: layer 2" in " ".join(done.stdout.split())
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")


def broken(tiny: TinyRun, folder: Path) -> Path:
    shutil.copytree(tiny.init, folder)
    return folder / "iter_0000000"


def refused(checkpoint: Path, out: Path) -> str:
    done = ipt("convert", "export", checkpoint, out, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert not out.exists()
    return done.stderr.strip().splitlines()[-1]


def test_a_flipped_byte_is_found(tiny: TinyRun, tmp_path: Path) -> None:
    checkpoint = broken(tiny, tmp_path / "flipped")
    shard = next(checkpoint.glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    told = refused(checkpoint, tmp_path / "out")
    assert "not as it was written" in told
    assert shard.name in told


def test_a_planted_pickle_is_not_opened(tiny: TinyRun, tmp_path: Path) -> None:
    checkpoint = broken(tiny, tmp_path / "planted")
    proof = tmp_path / "touched"

    class Plant:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (proof,)  # type: ignore[return-value]

    (checkpoint / "common.pt").write_bytes(pickle.dumps(Plant()))
    assert "does not list this file" in refused(checkpoint, tmp_path / "out")
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Plant()))
    (checkpoint / "common.pt").unlink()
    assert "not as it was written" in refused(checkpoint, tmp_path / "out")
    assert not proof.exists()


FAULTS = ["no_checkpoint", "missing_tensor", "further_tensor", "unknown_family", "wrong_shape", "no_directory"]


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_directories_are_told_in_one_line(tiny: TinyRun, tmp_path: Path, fault: str) -> None:
    hf = tmp_path / "hf"
    shutil.copytree(tiny.hf, hf)
    config = json.loads((hf / "config.json").read_text())
    tensors = load_file(hf / "model.safetensors")
    if fault == "missing_tensor":
        _save({name: value for name, value in tensors.items() if "layers.2.mlp.up" not in name}, hf)
    elif fault == "further_tensor":
        _save({**tensors, "model.layers.2.self_attn.q_proj.bias": torch.zeros(64)}, hf)
    elif fault == "wrong_shape":
        (hf / "config.json").write_text(json.dumps({**config, "intermediate_size": 160}))
    elif fault == "unknown_family":
        (hf / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    elif fault == "no_directory":
        shutil.rmtree(hf)
    told = {
        "no_checkpoint": "no checkpoint there",
        "missing_tensor": "tensor 'model.layers.2.mlp.up_proj.weight' is missing",
        "further_tensor": "tensor 'model.layers.2.self_attn.q_proj.bias' is of no use to a model of family llama",
        "unknown_family": "model_type 'gpt2' is not supported",
        "wrong_shape": "expected (160, 64)",
        "no_directory": "config.json is missing",
    }[fault]
    arguments = ("export", tmp_path, tmp_path / "out") if fault == "no_checkpoint" else ("import", hf, tmp_path / "out")
    done = ipt("convert", *arguments, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert told in last


def _save(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
