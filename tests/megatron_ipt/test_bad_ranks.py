"""A rank that hangs or dies in the middle: one line says which and why, and all processes are gone soon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TinyRun, environment
from forks import warm_python

from megatron_ipt.cli import torchrun_log
from megatron_ipt.training.watchdog import ENDED, Judge, Phase, Position

WORKER = Path(__file__).with_name("bad_rank_worker.py")
CODE = """
import sys
from megatron_ipt.cli import main, train
train.WORKER[:] = [sys.argv.pop(1)]
main.main()
"""


def run_with(fault: str, tiny: TinyRun, folder: Path, *more: str, python: str = sys.executable) -> tuple[str, float]:
    """`ipt train` with the faulty worker in the place of its own; what it says, and how long after step 2 it ended."""
    settings = [f"output_dir={folder}", "train.nproc_per_node=2", "train.train_iters=5", "train.parity_gate=false"]
    settings += ["train.held_out=null", "train.hang_seconds=6", *more]
    command = [python, "-c", CODE, str(WORKER), "train", str(tiny.recipe), *settings]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**environment(), "FAULT": fault}, timeout=120, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    metrics = folder / "train" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    assert [row["iteration"] for row in rows if row["kind"] == "train"] == [1, 2]
    assert not any(str(folder) in line for line in _processes())
    return done.stderr.strip(), time.time() - metrics.stat().st_mtime


def _processes() -> list[str]:
    """The command lines of all processes but this one's."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(
                path.read_bytes().replace(b"\0", b" ").decode() if path.parent.name != str(os.getpid()) else ""
            )
        except OSError:
            continue
    return found


def test_a_rank_that_hangs_is_named_and_all_leave(tiny: TinyRun, tmp_path: Path) -> None:
    told, seconds = run_with("sleep", tiny, tmp_path / "run")
    assert told.startswith("error: rank 1: no move for "), told
    assert "out of iteration 3 (forward and backward of micro batch 1), where the others wait for it" in told
    assert len(told.splitlines()) == 1
    assert seconds < 30
    assert "bad_rank_worker.py" in (tmp_path / "run" / "train" / "torchrun.log").read_text()  # where it slept


def test_a_rank_that_is_killed_is_named_with_its_signal(tiny: TinyRun, tmp_path: Path) -> None:
    told, seconds = run_with("kill", tiny, tmp_path / "run", python=warm_python())
    assert told.startswith("error: rank 1: was killed by SIGKILL"), told
    assert len(told.splitlines()) == 1
    assert seconds < 30


def test_a_file_that_rank_0_alone_cannot_write_is_one_line_and_all_leave(tiny: TinyRun, tmp_path: Path) -> None:
    """The others wait in a collective for the metadata file: before, for half an hour."""
    told, seconds = run_with("metadata", tiny, tmp_path / "run", "train.save_interval=1", python=warm_python())
    saves = tmp_path / "run" / "train" / "checkpoints"
    line = f"error: {saves / 'iter_0000002'}: the checkpoint was not written ([Errno 28] No space left on device); "
    assert told.startswith(line), told
    assert told.endswith("iter_0000001 is untouched") and len(told.splitlines()) == 1
    assert seconds < 30
    assert (saves / "latest_checkpointed_iteration.txt").read_text(encoding="utf-8") == "1"


def positions(*found: tuple[int, Phase, int, int]) -> dict[int, Position]:
    return {rank: Position(*position) for rank, position in enumerate(found)}


def test_the_rank_furthest_behind_is_the_cause() -> None:
    judge = Judge(0, hang_seconds=10)
    told = None
    for beat in range(12):
        seen = positions(
            (3, Phase.FORWARD_BACKWARD, 2, beat), (3, Phase.DATA, 0, beat), (3, Phase.FORWARD_BACKWARD, 2, beat)
        )
        assert told is None or beat > 10
        told = judge.look(seen, 1.0)
    assert told == ("rank 1", "no move for 11 s out of iteration 3 (reading its batch), where the others wait for it")


@pytest.mark.parametrize("other", [Phase.FREE, None])
def test_nothing_is_judged_in_a_save_or_while_steps_go_on(other: Phase | None) -> None:
    judge = Judge(0, hang_seconds=10)
    for beat in range(50):
        free = (2, Phase.FREE, 0, beat)
        moving = (beat // 8, Phase.DATA, 0, beat)
        mine = (3, Phase.DATA, 0, beat) if other is Phase.FREE else moving
        assert judge.look(positions(mine, free if other is Phase.FREE else moving), 1.0) is None


def test_a_slow_step_is_waited_for_ten_times_as_long() -> None:
    judge = Judge(0, hang_seconds=10)
    judge.slowest_step = 3.0
    told = [judge.look(positions((9, Phase.DATA, 0, beat)), 1.0) for beat in range(32)]
    assert [number for number, cause in enumerate(told) if cause] == [30, 31]


def test_a_rank_whose_thread_no_longer_answers_is_gone() -> None:
    judge = Judge(1, hang_seconds=1000, gone_seconds=20)
    told = [judge.look(positions((5, Phase.UPDATE, 0, 7), (5, Phase.UPDATE, 0, beat)), 1.0) for beat in range(22)]
    assert [number for number, cause in enumerate(told) if cause] == [20, 21]
    assert told[20] == ("rank 0", "no answer for 20 s, last seen in iteration 5 (the optimizer's step)")


@pytest.mark.parametrize("mine", ["silent", "moving"])
def test_a_silent_rank_is_no_cause_to_one_that_moves_nor_this_one_to_itself(mine: str) -> None:
    judge = Judge(0, hang_seconds=1000, gone_seconds=20)
    for beat in range(50):
        here, there = (5, Phase.UPDATE, 0, 7), (5, Phase.UPDATE, 0, beat)
        if mine == "moving":
            here, there = (beat, Phase.UPDATE, 0, beat), (5, Phase.UPDATE, 0, 7)
        assert judge.look(positions(here, there), 1.0) is None


def test_a_rank_that_is_gone_is_noticed_in_a_save_too_and_waited_for_twice_as_long() -> None:
    judge = Judge(1, hang_seconds=5, gone_seconds=20)
    told = [judge.look(positions((5, Phase.FREE, 0, 7), (5, Phase.FREE, 0, beat)), 1.0) for beat in range(42)]
    assert [number for number, cause in enumerate(told) if cause] == [40, 41]
    assert told[40] == ("rank 0", "no answer for 40 s, last seen in iteration 5 (outside of its steps)")


def test_a_rank_whose_loop_has_ended_is_not_gone() -> None:
    judge = Judge(1, hang_seconds=5, gone_seconds=20)
    for beat in range(90):
        assert judge.look(positions((5, Phase.FREE, 0, ENDED), (5, Phase.FREE, 0, beat)), 1.0) is None


REPORT = """RuntimeError: connection reset
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : {} (pid: 14971)
-------------------------------------------------------
Root Cause (first observed failure):
[0]:
  rank      : 3 (local_rank: 1)
  exitcode  : {} (pid: 14972)
"""


@pytest.mark.parametrize(
    ("codes", "first_only", "told"),
    [
        (("-15 (pid: 1)  (SIGTERM)", "-11 (pid: 2)  (SIGSEGV)"), True, "rank 3: was killed by SIGSEGV"),
        (("-9 (pid: 1)  (SIGKILL)", "1"), False, "rank 0: was killed by SIGKILL"),
        (("-9 (pid: 1)  (SIGKILL)", "1"), True, None),
        (("-15 (pid: 1)  (SIGTERM)", "1"), False, None),
    ],
)
def test_torchruns_report_names_the_rank(
    codes: tuple[str, str], first_only: bool, told: str | None, tmp_path: Path
) -> None:
    log = tmp_path / "torchrun.log"
    log.write_text(REPORT.replace(" (pid: 14971)", "").replace(" (pid: 14972)", "").format(*codes))
    found = torchrun_log.killed(log, first_only=first_only)
    assert str(found).startswith(told) if told else found is None


def test_the_first_exception_in_torchruns_log_is_the_cause(tmp_path: Path) -> None:
    log = tmp_path / "torchrun.log"
    log.write_text("W1122 a warning\n[rank1]: ValueError: the first\n[rank1]:   File\nRuntimeError: peer\n")
    assert torchrun_log.cause(log) == "ValueError: the first"
    log.write_text("a line without one\n")
    assert torchrun_log.cause(log) == "no exception in the log: killed from outside?"
