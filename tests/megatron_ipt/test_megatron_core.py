"""What we stand on in megatron-core: the signatures we call, and the model class that is to take GPTModel's place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from forks import environment, warm_python

HERE = Path(__file__).parent


def script(python: str, name: str) -> Any:
    command = [python, HERE / name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment("megatron"), check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout[done.stdout.index("{") :])


def test_megatron_cores_signatures_are_those_that_were_read() -> None:
    """A part that is gone, a parameter that is gone or moved, or a part that is used and not in the snapshot."""
    expected = json.loads((HERE / "megatron_signatures.json").read_text(encoding="utf-8"))
    found = script(sys.executable, "signatures.py")
    unlike = {name: (expected.get(name), found.get(name)) for name in {*expected, *found}}
    unlike = {name: pair for name, pair in unlike.items() if pair[0] != pair[1]}
    assert not unlike, "read what changed, then make the snapshot again (signatures.py says how)"


def test_a_hybrid_model_has_the_same_logits() -> None:
    """docs/decisions/0001: the day megatron-core drops GPTModel, the weights and the mathematics stay."""
    told = script(warm_python(), "hybrid_worker.py")
    assert told["all_weights"]
    assert told["shape"] == [1, 64, 512]
    assert told["spread"] > 0.1
    assert told["difference"] <= 1e-5
