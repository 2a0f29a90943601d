"""The machine: what the doctor says, and that training can run."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

from gpu import runs


def test_the_doctor_names_the_card_and_lets_training_run(figures: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "megatron_ipt.cli.main", "doctor"], capture_output=True, text=True, check=False
    )
    said = re.sub(r"\s+", " ", done.stdout)
    name = runs.card()["name"]
    told = [re.sub(r"\s*[\u2500-\u257f]\s*", " | ", line).strip(" |") for line in done.stdout.splitlines()]
    figures(card=name, capability=runs.card()["capability"], said=[line for line in told if line])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ready to train" in said
    assert ("none: gloo on the CPU" if name is None else name) in said
    assert f"(this process: {'cpu' if name is None else 'gpu'})" in said
