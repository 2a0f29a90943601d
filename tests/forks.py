"""Processes for tests that need megatron-core: forked from one that has imported it, once a test process.

megatron-core's CPU shim must not reach pytest's own process, where transformers, an oracle, runs; and to import it anew
takes seconds each time.  What a fork does not show stands in megatron_ipt/fork_server.py.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_forked(argv: Sequence[object], ranks: Sequence[Mapping[str, str]]) -> str:
    """A Python script with its arguments, once in each environment of `ranks`, side by side; what they wrote."""
    with tempfile.NamedTemporaryFile(mode="r", encoding="utf-8") as log:
        request = {"argv": [*map(str, argv)], "ranks": [*ranks], "log": log.name}
        server = fork_server()
        assert server.stdin and server.stdout
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        codes = json.loads(server.stdout.readline())
        told = log.read()
    assert codes == [0] * len(ranks), f"{codes}\n{told}"
    return told


def forked_python(code: str, *arguments: str) -> Any:
    """Run code in a process of its own; it prints JSON last."""
    with tempfile.NamedTemporaryFile("w", suffix=".py", encoding="utf-8") as script:
        script.write(code)
        script.flush()
        told = run_forked([script.name, *arguments], [environment()])
    return json.loads(told.strip().splitlines()[-1])


@functools.cache
def fork_server() -> subprocess.Popen[str]:
    """One for this process, which it ends with."""
    script = Path(__file__).with_name("megatron_ipt") / "fork_server.py"
    alone = environment() | {"JE_ARROW_MALLOC_CONF": "background_thread:false"}  # pyarrow's one thread: it is to fork
    server = subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=alone
    )
    atexit.register(server.communicate)  # no more requests: it ends, and is waited for
    return server
