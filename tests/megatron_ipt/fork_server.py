"""Starts the ranks of a run without their imports: it has imported megatron-core once, and forks each rank.

    python fork_server.py < REQUESTS > ANSWERS

A request is a line of JSON: `argv` (a Python script and its arguments), `ranks` (the environment of each) and `log` (a
file for what they write).  Its answer, when all have ended, is a line with their exit codes; where one fails, the
others are ended, as torchrun's agent does.

A rank so started has its own process, environment, arguments and process group, as one of torchrun's.  What it does
not show: that the modules import in a fresh process, in whatever order a program asks for them, and that ranks agree
though their strings hash unlike (these share the server's seed).  The tests that start `ipt train` or torchrun show
both.  Forking is sound where there is one thread and no group yet: Python warns where there are more.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

import megatron_ipt.convert.load_hf
import megatron_ipt.training.run  # noqa: F401

FAILING_SECONDS = 30.0
"""What the other ranks get to end themselves after one has failed [s]."""
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that this process gets when the one that started it is gone."""


def serve() -> None:
    """Answer requests until there are none; a forked rank comes out of here as its script ends."""
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        processes = []
        for variables in request["ranks"]:
            process = os.fork()
            if process == 0:
                become(request["argv"], variables, Path(request["log"]))
                return
            processes.append(process)
        sys.stdout.write(json.dumps(ended(processes)) + "\n")
        sys.stdout.flush()


def die_with_parent() -> None:
    """Tests that are interrupted leave nobody behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def become(argv: list[str], variables: dict[str, str], log: Path) -> None:
    """Be the script of `argv`, as `python SCRIPT ARGUMENTS` would be."""
    die_with_parent()
    os.setsid()  # torchrun's workers have a process group each, which a signal may be sent to
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = argv
    sys.path[0] = str(Path(argv[0]).parent)
    runpy.run_path(argv[0], run_name="__main__")


def ended(processes: list[int]) -> list[int]:
    """The exit codes, in the order of `processes`; a signal's is negative."""
    codes: dict[int, int] = {}
    until = None
    while len(codes) < len(processes):
        process, status = os.waitpid(-1, os.WNOHANG if until else 0)
        if process:
            codes[process] = os.waitstatus_to_exitcode(status)
        left = [process for process in processes if process not in codes]
        if until is None and any(codes.values()):
            until = time.monotonic() + FAILING_SECONDS
            end(left, signal.SIGTERM)
        elif until is not None and not process:
            time.sleep(0.05)
            if time.monotonic() > until:
                end(left, signal.SIGKILL)
    return [codes[process] for process in processes]


def end(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        os.kill(process, number)


if __name__ == "__main__":
    die_with_parent()
    gc.freeze()  # what a rank looks through, it copies: leave out what is imported
    serve()
