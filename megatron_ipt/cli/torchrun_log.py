"""What torchrun's log says of a run that failed."""

from __future__ import annotations

import re
from pathlib import Path

from data_prep.errors import UserError

_EXCEPTION = re.compile(r"(?:\[rank\d+\]: ?)?((?:[\w.]+\.)?\w*(?:Error|Exception)\b.*)")
_ENTRY = re.compile(r"^\s*rank\s*: (\d+).*\n\s*exitcode\s*: -\d+ .*\((SIG\w+)\)", re.MULTILINE)
_ROOT = "Root Cause (first observed failure)"


def cause(log: Path) -> str:
    """The first exception that the run wrote to its log: later ones are of the ranks it took along."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-400:]
    found = [match.group(1) for line in lines if (match := _EXCEPTION.match(line))]
    return found[0] if found else "no exception in the log: killed from outside?"


def killed(log: Path, *, first_only: bool) -> UserError | None:
    """The rank that a signal ended, if one did; `first_only`: if its was the first failure.

    SIGTERM is left out: torchrun ends the others with it.
    """
    report = log.read_text(encoding="utf-8", errors="replace")
    _, _, root = report.rpartition(_ROOT)
    found = [entry for part in ([root] if first_only else [root, report]) for entry in _ENTRY.findall(part)]
    for rank, signal in found:
        if signal != "SIGTERM":
            memory = "the kernel does that when memory runs out (dmesg tells); " if signal == "SIGKILL" else ""
            mend = f"{memory}{log} has the whole of it; start again to go on from the newest checkpoint"
            return UserError(f"rank {rank}", f"was killed by {signal}", mend)
    return None
