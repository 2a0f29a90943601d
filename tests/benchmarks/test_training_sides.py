"""What training's speed is held against computes the same steps, and every case can be built."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from forks import environment, warm_python
from random_tokens import chunks, write

from data_prep.blend import plan
from data_prep.settings import BlendSettings, SourceSettings

WORKER = Path(__file__).with_name("both_sides_worker.py")
PARAMETERS = {  # Llama-3.2-1B's and Llama-3-8B's, as their authors' files have them
    "llama3.2-1b-bf16": 1_235_814_400,
    "8b-bf16": 8_030_261_248,
    "8b-fp8": 8_030_261_248,
}


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sides")
    write(folder / "one", chunks(0, 40, 512), 512)
    plan(
        BlendSettings(sources={"one": SourceSettings(prefix=folder / "one", weight=1)}, seq_length=64), folder / "blend"
    )
    command = [warm_python(), str(WORKER), str(folder), str(folder / "out.json")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment("megatron"), check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    return found


def test_both_sides_of_each_case_have_the_same_weights_and_settings(sides: dict[str, Any]) -> None:
    for name, built in sides["built"].items():
        assert built["on_a_rank"] == built["bare_on_a_rank"], name
        assert built["differences"] == {}, name


def test_models_have_the_sizes_that_they_are_named_after(sides: dict[str, Any]) -> None:
    assert {name: sides["built"][name]["parameters"] for name in PARAMETERS} == PARAMETERS


def test_cases_fit_the_cards_they_are_for(sides: dict[str, Any]) -> None:
    h100, h200 = 84.9e9, 150.1e9  # what CUDA tells of cards of 80 and of 141 GB
    for name, built in sides["built"].items():
        assert built["standing_bytes"] < built["estimated_bytes"] < (h200 if name in ("8b-bf16", "8b-fp8") else h100)


@pytest.mark.parametrize(
    ("name", "bytes_a_parameter"),
    [
        ("llama3.2-1b-bf16", 2 + 4 + 4 + 4 + 4),
        ("8b-bf16", 2 + 4 + 2 + 2 + 2),  # the fp32 master as the half that the weight has not
        ("8b-fp8", (1 + 1) + 4 + 4 + 2 + 2),
    ],
)
def test_parameters_take_the_bytes_that_their_numbers_have(
    sides: dict[str, Any], name: str, bytes_a_parameter: int
) -> None:
    standing = sides["built"][name]["standing_bytes"] - 2 * 2**30  # the libraries' own
    assert standing == PARAMETERS[name] * bytes_a_parameter


def test_the_bare_loop_takes_the_steps_that_our_run_takes(sides: dict[str, Any]) -> None:
    ours, bare = sides["ours"], sides["bare"]
    assert len(ours["losses"]) == 4 and len(ours["periods_ms"]) == len(bare["periods_ms"]) == 3
    assert bare["losses"] == pytest.approx(ours["losses"], abs=1e-6)
    assert bare["norms"] == pytest.approx(ours["norms"], rel=1e-6)
    assert len({*map(str, ours["losses"])}) == 4 and ours["norms"][0] > 0.1


def test_what_a_step_waits_for_data_is_told(sides: dict[str, Any]) -> None:
    assert len(sides["ours"]["data_ms"]) == 4 and all(wait > 0 for wait in sides["ours"]["data_ms"])
    assert sides["ours"]["memory_bytes"] > 1e8 and sides["bare"]["memory_bytes"] > 1e8
