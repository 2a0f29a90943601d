"""benchmarks/training.py from turn to turn: it goes on where it stopped, keeps to its time, and answers by its code.

The turns themselves are stood in for: nothing is timed here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import steps
import training
import training_runs
from training_cases import CASES

from data_prep.errors import UserError

Verb = Callable[..., int]


@pytest.fixture
def verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Verb:
    """Runs the program on a machine of the mind, on which each turn says that it took 100 s; gives its exit code."""
    machine = {"device": "a CPU", "gpus": 0, "transformer_engine": False}

    def probe(*_: Any) -> dict[str, Any]:
        return {"machine": dict(machine), "rates": {"bfloat16": {"square": 1e11}}}

    def call(*arguments: str, ratio: float = 1.0, device: str = "a CPU") -> int:
        machine["device"] = device

        def turn(*_: Any, reverse: bool, **__: Any) -> dict[str, Any]:
            runs = {"ours": {"periods_ms": [10.0] * 6}, "bare": {"periods_ms": [10.0 * ratio] * 6}}
            return {"seconds": 100.0, "reverse": reverse, **runs}

        monkeypatch.setattr(training, "turn", turn)
        monkeypatch.setattr(sys, "argv", ["training.py", "--work", str(tmp_path / "work"), *arguments])
        with pytest.raises(SystemExit) as ended:
            training.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    monkeypatch.setattr(training, "probe", probe)
    monkeypatch.setattr(training, "prepare", lambda *_, **__: None)
    return call


def turns(out: Path, case: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))["cases"][case]["turns"]
    return found


def test_a_file_that_is_there_is_gone_on_with(verb: Verb, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    asked = ("--case", "8m-two-parts", "--out", str(out))
    assert verb(*asked, "--turns", "2") == 0
    assert verb(*asked, "--turns", "5", ratio=0.9) == 0
    kept = turns(out, "8m-two-parts")
    assert [turn["bare"]["periods_ms"][0] for turn in kept] == [10.0, 10.0, 9.0, 9.0, 9.0]
    assert [turn["reverse"] for turn in kept] == [False, True, False, True, False]


def test_no_turn_begins_that_does_not_fit_the_time(verb: Verb, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    for expected in (1, 1):  # the first is begun in good faith; a second of 100 s does not fit
        verb("--case", "8m-two-parts", "--seconds", "50", "--out", str(out))
        assert len(turns(out, "8m-two-parts")) == expected
    verb("--case", "8m-two-parts", "--seconds", "5000", "--turns", "3", "--out", str(out))
    assert len(turns(out, "8m-two-parts")) == 3


def test_the_exit_code_is_the_gates(verb: Verb, tmp_path: Path) -> None:
    asked = ("--case", "8m-two-parts", "--gate")
    assert verb(*asked) == 0
    assert verb(*asked, ratio=0.94) == 1
    assert verb(*asked, "--turns", "3") == 2
    assert verb("--case", "8m-two-parts", ratio=0.94) == 0


def test_figures_of_another_machine_or_case_are_not_mixed(verb: Verb, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    verb("--case", "8m-two-parts", "--turns", "1", "--out", str(out))
    with pytest.raises(UserError, match=r"this is .*another CPU.*; give another --out"):
        verb("--case", "8m-two-parts", "--out", str(out), device="another CPU")
    with pytest.raises(UserError, match=r"case 8m-two-parts: was measured with other settings"):
        verb("--case", "8m-two-parts", "--out", str(out), "--bare", str(tmp_path))


def test_a_changed_case_has_a_name_of_its_own(verb: Verb, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    for further in ((), ("--set", "micro_batch_size=1")):
        verb("--case", "8m-two-parts", "--turns", "1", "--out", str(out), *further)
    assert len(turns(out, "8m-two-parts")) == len(turns(out, "8m-two-parts micro_batch_size=1")) == 1


def test_without_a_name_all_that_can_run_here_is_measured(verb: Verb, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    verb("--turns", "1", "--out", str(out))
    names = {"8m-one-process", "8m-two-replicas", "8m-two-stages", "8m-two-parts"}
    assert set(json.loads(out.read_text(encoding="utf-8"))["cases"]) == names
    with pytest.raises(UserError, match="needs a GPU"):
        verb("--case", "8b-fp8")


def test_a_run_that_fails_gives_its_reason_in_a_line() -> None:
    told = "Traceback ...\n  File ...\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
    assert training_runs.reason(told)[1].startswith("raise recompute_num_layers")
    assert training_runs.reason("x\nerror: train.seq_length: 9 is odd; use 8\n")[0].endswith("use 8")


def test_a_run_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    script = tmp_path / "sleeps.py"
    script.write_text("import time\ntime.sleep(60)\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"--seconds: are over in the middle of a turn"):
        training_runs.run(str(script), [], limit=0.2)


def test_of_two_runs_at_once_the_failure_of_one_ends_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(script: str, arguments: list[str], **_: Any) -> None:
        if script == "bare_loop.py":
            raise UserError(script, "has no weights", "find some")
        steps.of_this_rank(arguments[-1]).begin()

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(training_runs, "run", run)
    with pytest.raises(UserError, match="has no weights"):
        training_runs.turn(CASES["8m-one-process"], tmp_path, None, reverse=True, limit=None)


def test_what_another_script_tells_stands_for_its_periods() -> None:
    kept = training_runs.short({"ms": 12.3456789, "losses": [3.0, 2.0, 1.0]})
    assert {*kept["periods_ms"]} == {12.346} and kept["losses"] == [3.0, 1.0]
    assert len(kept["periods_ms"]) > training_runs.figures.WARM_UP
