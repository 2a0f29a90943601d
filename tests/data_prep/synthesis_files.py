"""The files of a finished run of synthesis, by what is added to the name of its chains."""

from __future__ import annotations

from pathlib import Path
from typing import Final

KINDS: Final = ("", ".leftover.jsonl", ".failed.jsonl", ".rejected.jsonl", ".dropped.jsonl", ".documents.jsonl.zst")
"""But for the summary, which tells of one run's time."""
ALL: Final = (*KINDS, ".summary.json")


def outputs(out: Path) -> dict[str, bytes]:
    return {kind: Path(f"{out}{kind}").read_bytes() for kind in KINDS}
