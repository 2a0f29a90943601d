"""Rows of Parquet come a few at a time: memory does not grow with the row group, nor with what is not asked for."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.parquet_rows import parquet_rows

# Prints the rows of a file, and by how much reading them raised the most memory the process ever held [MB].
READER = """
import sys
from pathlib import Path
import pyarrow.parquet
from data_prep.parquet_rows import parquet_rows

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024

before = peak()
print(sum(1 for _ in parquet_rows(Path(sys.argv[1]), columns={"text"})), peak() - before)
"""


@pytest.mark.parametrize("repeated", [False, True], ids=["other texts", "one text, in a dictionary"])
def test_a_large_row_group_takes_little_memory(tmp_path: Path, repeated: bool) -> None:
    """80 MB in one row group, long rows, and a column of the same size that nobody asks for."""
    path, size, count = tmp_path / "in.parquet", 200_000, 400
    drawn = random.Random(0)
    texts = ["x" * size] * count if repeated else [drawn.randbytes(size // 2).hex() for _ in range(count)]
    table = pa.table({"text": texts, "more": texts})
    pq.write_table(table, path, row_group_size=count, write_batch_size=4)
    assert pq.read_metadata(path).num_row_groups == 1
    done = subprocess.run([sys.executable, "-c", READER, path], capture_output=True, text=True, check=True)
    rows, grown = map(int, done.stdout.split())
    assert rows == count
    assert grown < 40


def test_row_groups_and_columns_are_chosen(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    rows = [{"text": f"t{number}", "id": number, "spans": {"ends": [number]}} for number in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1200)
    everything = [(f"{path}:{number}", row) for number, row in enumerate(rows, 1)]
    assert list(parquet_rows(path)) == everything
    assert list(parquet_rows(path, [1, 2], 1201)) == everything[1200:]
    chosen = list(parquet_rows(path, [1], 1201, {"spans", "text", "absent"}))
    assert chosen == [(where, {"text": row["text"], "spans": row["spans"]}) for where, row in everything[1200:2400]]
