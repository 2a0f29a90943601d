"""Neither import nor export holds a model: four times the layers take no more memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from conftest import environment

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "convert.py"


def test_memory_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    """Of twelve layers more, fewer than three are held: what is on its way at once varies by two from run to run."""
    arguments = ["--work", tmp_path / "work", "--out", tmp_path / "out.json", "--shape", "512", "--layers", "4", "16"]
    subprocess.run([sys.executable, str(BENCHMARK), *map(str, arguments)], check=True, env=environment())
    rows = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    for verb in ("import", "export"):
        few, many = (row for row in rows if row["verb"] == verb)
        assert many["model_bytes"] - few["model_bytes"] == 12 * many["layer_bytes"]
        assert many["grown_bytes"] - few["grown_bytes"] < 3 * many["layer_bytes"], rows
