"""Slices of the input: every line once, in order, under its own number, however it is cut and whoever reads it."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.errors import UserError
from data_prep.manifest import BLOCK_BYTES
from data_prep.readers import read_slice
from data_prep.shards import plan, run_tasks


def write(path: Path, lengths: list[int], newline_at_end: bool = True) -> list[dict]:
    rows = [{"id": number, "text": "x" * length} for number, length in enumerate(lengths)]
    content = b"\n".join(orjson.dumps(row) for row in rows)
    path.write_bytes(content + b"\n" * (newline_at_end and bool(rows)))
    return rows


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 200), max_size=40), st.booleans(), st.integers(1, 500), st.integers(1, 3))
def test_slices_give_every_line_once_under_its_number(
    tmp_path: Path, lengths: list[int], end: bool, slice_bytes: int, threads: int
) -> None:
    path = tmp_path / "in.jsonl"
    rows = write(path, lengths, end)
    found = plan([path], slice_bytes, threads)
    lines = [line for part in found.slices for line in read_slice(part)]
    assert [row for _, row in lines] == rows
    assert [where for where, _ in lines] == [f"{path}:{number}" for number in range(1, len(rows) + 1)]
    assert found == plan([path], slice_bytes)
    assert all(part.end - part.start >= slice_bytes // 2 for part in found.slices[:-1])


def test_cuts_and_line_numbers_hold_over_blocks(tmp_path: Path) -> None:
    """Files are read in blocks of 64 MiB; here a line ends right after one."""
    path = tmp_path / "in.jsonl"
    line = b'{"text":"' + b"a" * (1 << 20) + b'"}\n'
    count = BLOCK_BYTES // len(line) + 3
    path.write_bytes(line * count)
    found = plan([path], 5 << 20)
    numbers = [int(where.rpartition(":")[2]) for part in found.slices for where, _ in read_slice(part)]
    assert numbers == list(range(1, count + 1))
    assert len(found.slices) > 10
    blocks = [xxhash.xxh3_128_hexdigest(path.read_bytes()[start : start + BLOCK_BYTES]) for start in (0, BLOCK_BYTES)]
    assert found.inputs[0].hash == xxhash.xxh3_128_hexdigest("".join(blocks).encode())


def test_compressed_files_are_one_slice_and_parquet_is_cut_at_row_groups(tmp_path: Path) -> None:
    rows = write(tmp_path / "in.jsonl", [100] * 30)
    content = (tmp_path / "in.jsonl").read_bytes()
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(content))
    (tmp_path / "in.jsonl.zst").write_bytes(zstandard.compress(content))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet", row_group_size=4)
    for name, slices in (("in.jsonl.gz", 1), ("in.jsonl.zst", 1), ("in.parquet", 8)):
        found = plan([tmp_path / name], 10)
        lines = [line for part in found.slices for line in read_slice(part)]
        assert len(found.slices) == slices
        assert lines == [(f"{tmp_path / name}:{number}", row) for number, row in enumerate(rows, 1)]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("absent.jsonl", None, "absent.jsonl: no such file"),
        ("bad.parquet", b"PAR1 nothing", "bad.parquet: not a Parquet file"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes | None, told: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told):
        plan([tmp_path / name], 10)


def test_parquet_that_is_not_utf8_is_told_in_a_line(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array([b"good", b"\xff\xfe"], pa.binary())}).cast(
        pa.schema([("text", pa.string())]), safe=False
    )
    pq.write_table(table, tmp_path / "bad.parquet")
    (part,) = plan([tmp_path / "bad.parquet"], 10).slices
    with pytest.raises(UserError, match=r"bad.parquet.*not UTF-8"):
        list(read_slice(part))


def double(number: int) -> tuple[int, int]:
    """A task that says who ran it; 7 is bad input, 9 a fault of the code, and 13 kills its process."""
    if number == 13:
        os._exit(1)
    if number == 7:
        raise UserError("task 7", "bad luck")
    if number == 9:
        raise ZeroDivisionError("a fault of ours")
    return 2 * number, os.getpid()


def make() -> Callable[[int], tuple[int, int]]:
    return double


def test_each_task_of_a_worker_has_a_process_of_its_own() -> None:
    assert list(run_tasks(make, [1, 2], 0)) == [(2, os.getpid()), (4, os.getpid())]
    assert list(run_tasks(make, [1], 3)) == [(2, os.getpid())]
    for workers in (1, 2):
        found = list(run_tasks(make, [1, 2, 3], workers))
        assert sorted(number for number, _ in found) == [2, 4, 6]
        assert len({os.getpid(), *(process for _, process in found)}) == 4


def test_errors_and_deaths_of_workers_reach_the_caller() -> None:
    with pytest.raises(UserError, match="task 7: bad luck"):
        list(run_tasks(make, [1, 7], 2))
    with pytest.raises(ZeroDivisionError) as fault:
        list(run_tasks(make, [1, 9], 2))
    assert "in double" in "".join(fault.value.__notes__)
    with pytest.raises(ChildProcessError, match="a task ended with 1"):
        list(run_tasks(make, [1, 13], 2))
