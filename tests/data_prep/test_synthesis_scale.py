"""A million documents in bounded memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCUMENTS = 1_000_000
RUN = """
import sys
from pathlib import Path
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis import synthesize

settings = SynthesizeSettings(engine="rules", rounds=2, shard_documents=int(sys.argv[3]))
synthesize(settings, Path(sys.argv[1]), None, Path(sys.argv[2]))
print(Path("/proc/self/status").read_text())
"""


def peak_bytes(folder: Path, documents: int, shard_documents: int) -> int:
    """The most memory that a process of its own has had, Python and libraries included."""
    with (folder / "in.jsonl").open("w") as stream:
        for number in range(documents):
            text = f"Kiln {number}\n\nA kiln is an oven for bricks; therefore it burned in {1000 + number % 1000}."
            stream.write(json.dumps({"id": f"d{number % (documents - documents // 10)}", "text": text}) + "\n")
    command = [sys.executable, "-c", RUN, str(folder / "in.jsonl"), str(folder / "c.jsonl"), str(shard_documents)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    summary = json.loads((folder / "c.jsonl.summary.json").read_text())
    assert summary["documents"] == documents - documents // 10
    assert summary["dropped"] == {"duplicate_id": documents // 10}
    found = re.search(r"VmHWM:\s+(\d+) kB", told)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.long
def test_a_million_short_documents_take_less_than_a_gigabyte(tmp_path: Path):
    """6 minutes of a CPU; no seeds.  A tenth of the ids come twice."""
    assert peak_bytes(tmp_path, DOCUMENTS, 1000) < 10**9
