"""What stands for `python` in tests starts programs that are as those of a new one, but for their imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from forks import environment, forked_python, run_forked, warm_python
from warm.launcher import kind_of

TELL = """
import json, os, sys
given = {name: value for name, value in os.environ.items() if name.startswith("GIVEN")}
print(json.dumps([sys.argv, os.getcwd(), given, __name__, sys.path[0], sys.stdin.read()]))
print("said", file=sys.stderr)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "tell.py"
    path.write_text(TELL, encoding="utf-8")
    return path


@pytest.mark.parametrize("program", [["-c", TELL], ["tell.py"], ["-u", "-m", "tell"]])
def test_a_program_has_what_a_new_python_gives_it(script: Path, program: list[str]) -> None:
    told = []
    for python in (sys.executable, warm_python()):
        done = subprocess.run(
            [python, *program, "a", "b  c", ""],
            cwd=script.parent,
            env={**environment(), "GIVEN": "ä 1\n2"},
            input="in\n",
            capture_output=True,
            text=True,
            check=True,
        )
        told.append((json.loads(done.stdout), done.stderr))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    "code",
    [
        "pass",
        "import sys; sys.exit(3)",
        "import sys; sys.exit('a word')",
        "import sys; sys.exit(300)",
        "1 / 0",
        "import os; os._exit(7)",
        "import os; os.abort()",
        "raise KeyboardInterrupt",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import atexit; atexit.register(print, 'last', end=''); print('first')",
        "import threading; threading.Timer(0.01, print, ['behind']).start()",
    ],
)
def test_it_ends_as_in_a_new_python(code: str) -> None:
    found = [
        subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, env=environment())
        for python in (sys.executable, warm_python())
    ]
    assert found[0].returncode == found[1].returncode
    assert found[0].stdout == found[1].stdout
    last: list[Sequence[str]] = [done.stderr.splitlines()[-1:] for done in found]
    assert last[0] == last[1]


WAITS = """
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(5))
print(os.getpid(), flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGUSR1, 5), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -9)],
)
def test_signals_reach_it(number: signal.Signals, code: int) -> None:
    heard = ["env", "--default-signal"]  # who runs the tests in the background has SIGINT ignored
    command = [*heard, warm_python(), "-c", WAITS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        program = int(process.stdout.readline())
        process.send_signal(number)
        assert process.stdout.read() == b""  # it has ended, and with it the last that could write
        assert process.wait() == code
    assert program != process.pid


def test_its_children_are_warm_too() -> None:
    code = "import subprocess, sys; print(subprocess.run([sys.executable, '-c', INNER]).returncode)"
    inner = "import os, sys; sys.exit(4 if 'torch' in sys.modules else 1)"
    done = subprocess.run([warm_python(), "-c", code.replace("INNER", repr(inner))], capture_output=True, check=True)
    assert done.stdout == b"4\n"


def test_what_an_oracles_import_sets_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    warm_python()
    monkeypatch.setenv("HF_XET_HIGH_PERFORMANCE", "1")
    assert forked_python("import sys; print('true' if 'torch' in sys.modules else 'false')", warm="plain")


def test_what_only_a_new_python_can_be_is_one(tmp_path: Path) -> None:
    """A variable that is read as Python starts, or an option of Python's own."""
    code = "import sys; print(sys.flags.optimize, 'torch' in sys.modules, sys.executable)"
    for options, variables in ((["-O"], {}), ([], {"PYTHONOPTIMIZE": "1"})):
        command = [warm_python(), *options, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**environment(), **variables})
        assert done.stdout.split() == ["1", "False", sys.executable]


def test_megatrons_shim_is_where_it_is_asked_for() -> None:
    code = "import json, sys; print(json.dumps([name in sys.modules for name in ('megatron.core', 'transformers')]))"
    found = {kind: forked_python(code, warm=kind) for kind in ("plain", "transformers", "megatron")}
    assert found == {"plain": [False, False], "transformers": [False, True], "megatron": [True, False]}
    ipt = ["-m", "megatron_ipt.cli.main"]
    assert [kind_of([*ipt, *call]) for call in (["run", "r", "--only", "evaluate"], ["plan"], ["train", "r"], [])] == [
        "transformers",
        "megatron",
        "plain",
        "plain",
    ]
    assert kind_of(["-m", "megatron_ipt.pretrain"]) == "megatron"


def test_where_a_rank_fails_the_others_are_ended() -> None:
    code = "import os, sys, signal\nif os.environ['RANK'] == '1': sys.exit(3)\nwhile True: signal.pause()"
    with pytest.raises(AssertionError, match=r"\[-15, 3\]"):
        run_forked(["-c", code], [{**os.environ, "RANK": str(rank)} for rank in range(2)])


def test_a_failure_tells_what_was_written() -> None:
    with pytest.raises(AssertionError, match="ValueError: here"):
        forked_python("raise ValueError('here')")
