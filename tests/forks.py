"""Processes for tests that need what takes seconds to import: forked from one that has it, once a test process.

megatron-core's CPU shim must not reach pytest's own process, where transformers, an oracle, runs.  What a fork does not
show stands in warm/server.py.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from warm.launcher import KIND

from megatron_ipt.cli.processes import CPU_SETTINGS

FAILING_SECONDS = 30.0
"""What the other ranks get to end themselves after one has failed [s]."""


def environment(warm: str = "") -> dict[str, str]:
    """For a process of a test; `warm` is what a script of `warm_python` needs, a name in warm/server.py's KINDS."""
    kind = {KIND: warm} if warm else {}
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **kind}


def run_forked(argv: Sequence[object], ranks: Sequence[Mapping[str, str]]) -> str:
    """A Python script with its arguments, once in each environment of `ranks`, side by side; what they wrote.

    Each has megatron-core imported.  Where one fails, the others are ended, as torchrun's agent does.
    """
    with tempfile.TemporaryFile() as log:
        command = [warm_python(), *map(str, argv)]
        processes = [
            subprocess.Popen(
                command,
                env={**variables, KIND: "megatron"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            for variables in ranks
        ]
        codes = ended(processes)
        log.seek(0)
        told = log.read().decode(errors="replace")
    assert codes == [0] * len(ranks), f"{codes}\n{told}"
    return told


def ended(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """The exit codes, in the order of `processes`; a signal's is negative."""
    until = None
    while None in (codes := [process.poll() for process in processes]):
        if until is None and any(codes):
            until = time.monotonic() + FAILING_SECONDS
            end(processes, signal.SIGTERM)
        elif until is not None and time.monotonic() > until:
            end(processes, signal.SIGKILL)
        time.sleep(0.02)
    return [code for code in codes if code is not None]


def end(processes: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in processes:
        process.send_signal(number)


def forked_python(code: str, *arguments: str, warm: str = "megatron") -> Any:
    """Run code in a process of its own, with what `warm` names imported; it prints JSON last."""
    command = [warm_python(), "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(warm), check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@functools.cache
def warm_python() -> str:
    """Stands for `sys.executable`: what it starts is forked.  One server for this process, which it ends with."""
    folder = tempfile.TemporaryDirectory(prefix="warm-")
    alone = {**CPU_SETTINGS, **environment(), "JE_ARROW_MALLOC_CONF": "background_thread:false"}  # one thread: it forks
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("warm") / "server.py", folder.name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=alone,
        start_new_session=True,
    )

    def stop() -> None:
        server.kill()  # and with it, by their own wish, all that it forked
        server.communicate()
        folder.cleanup()

    atexit.register(stop)
    assert server.stdout and server.stdout.readline() == "ready\n"
    return str(Path(folder.name, "python"))
