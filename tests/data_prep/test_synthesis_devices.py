"""Which GPUs the workers of one machine see."""

from __future__ import annotations

import os
from typing import Any

import pytest

from data_prep.errors import UserError
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.devices import (
    environment_with,
    environments,
    environments_of,
    gpus_of_engine,
    visible_devices,
)


@pytest.mark.parametrize(
    ("devices", "workers", "size", "seen"),
    [
        ("0 1 2 3", 4, 1, ["0", "1", "2", "3"]),
        ("0 1 2 3 4 5 6 7", 3, 2, ["0,1", "2,3", "4,5"]),
        ("3 5", 1, 2, ["3,5"]),
        ("GPU-a GPU-b", 2, 1, ["GPU-a", "GPU-b"]),
    ],
)
def test_each_worker_has_a_slice(devices: str, workers: int, size: int, seen: list[str]):
    assert environments(devices.split(), workers, size) == [{"CUDA_VISIBLE_DEVICES": each} for each in seen]


def test_without_a_gpu_nothing_is_said():
    assert environments([], 2, 1) == [{}, {}]


@pytest.mark.parametrize(("workers", "size", "most"), [(3, 1, 2), (2, 2, 1), (2, 4, 1)])
def test_more_workers_than_gpus_have_room_for_are_refused(workers: int, size: int, most: int):
    words = f"^--workers: {workers} engines of {size} GPUs each, and 2 GPUs are visible; take at most {most}, or let"
    with pytest.raises(UserError, match=words):
        environments(["0", "1"], workers, size)


@pytest.mark.parametrize(
    ("named", "devices"),
    [
        ("3,5", ["3", "5"]),
        (" 1, 0 ", ["1", "0"]),
        ("GPU-8932f937,GPU-4cf16ae6", ["GPU-8932f937", "GPU-4cf16ae6"]),
        ("", []),
        ("0,-1,1", ["0"]),
        ("NoDevFiles", []),
    ],
)
def test_devices_are_read_as_cuda_reads_them(named: str, devices: list[str]):
    assert visible_devices({"CUDA_VISIBLE_DEVICES": named}) == devices


def test_without_a_list_all_devices_are_meant(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert visible_devices({}) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("engine", "values", "gpus"),
    [
        ("transformers", {"tensor_parallel_size": 4}, 1),
        ("vllm", {}, 1),
        ("vllm", {"tensor_parallel_size": 4}, 4),
        ("vllm", {"tensor_parallel_size": 4, "engine_args": {"pipeline_parallel_size": 2}}, 8),
    ],
)
def test_an_engine_has_as_many_gpus_as_share_its_model(engine: Any, values: dict[str, Any], gpus: int):
    assert gpus_of_engine(SynthesizeSettings(engine=engine, **values)) == gpus


@pytest.mark.parametrize("engine", ["rules", "server"])
def test_engines_without_a_model_here_may_be_more_than_gpus(engine: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert environments_of(SynthesizeSettings(engine=engine), 3) == [{}, {}, {}]


def test_the_environment_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IPT_THERE", "a")
    with environment_with({"IPT_THERE": "b", "IPT_NEW": "c"}):
        assert (os.environ["IPT_THERE"], os.environ["IPT_NEW"]) == ("b", "c")
    assert os.environ["IPT_THERE"] == "a" and "IPT_NEW" not in os.environ
