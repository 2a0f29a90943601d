"""One process at a time, with real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import os, sys, time
from pathlib import Path
from data_prep.locks import one_at_a_time
folder = Path(sys.argv[1])
for turn in range(20):
    with one_at_a_time(folder / "lock"):
        os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
        time.sleep(0.002)
        os.unlink(folder / "inside")
        if sys.argv[2] == "dies" and turn == 3:
            os.kill(os.getpid(), 9)
"""


def test_no_two_processes_are_inside_and_the_dead_hold_nothing(tmp_path: Path) -> None:
    ways = ("lives", "lives", "lives", "dies")
    processes = [subprocess.Popen([sys.executable, "-c", CODE, str(tmp_path), way]) for way in ways]
    assert [process.wait(60) for process in processes] == [0, 0, 0, -9]
    assert not (tmp_path / "inside").exists()
