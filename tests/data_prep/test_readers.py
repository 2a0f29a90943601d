"""Readers and writers: what a user's files may do wrong, and that a file is whole or not there."""

import errno
import gzip
import os
import signal
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import orjson
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_prep.errors import UserError
from data_prep.locks import lock
from data_prep.readers import atomic_file, read_documents, read_jsonl, read_slice, sweep_partials, write_jsonl
from data_prep.shards import plan

ROWS = [{"id": "a", "text": "one"}, {"id": 7, "text": "zwei ü", "url": "x"}, {"text": "three", "source": "own"}]


def lines(rows: list[dict]) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "pack"),
    [("d.jsonl", bytes), ("d.jsonl.gz", gzip.compress), ("d.jsonl.zst", zstandard.ZstdCompressor().compress)],
)
def test_documents_are_the_same_whatever_the_compression(tmp_path: Path, name, pack):
    (tmp_path / name).write_bytes(pack(lines(ROWS)))
    documents = list(read_documents(tmp_path / name, source="corpus"))
    assert [document.text for document in documents] == ["one", "zwei ü", "three"]
    assert [document.id for document in documents][:2] == ["a", "7"]
    assert [document.source for document in documents] == ["corpus", "corpus", "own"]
    assert documents[1].metadata == {"url": "x"}


def test_parquet_and_other_keys(tmp_path: Path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x", "y"], "key": ["1", "2"]}), tmp_path / "d.parquet")
    documents = list(read_documents(tmp_path / "d.parquet", text_key="body", id_key="key"))
    assert [(document.id, document.text) for document in documents] == [("1", "x"), ("2", "y")]


def test_an_id_made_of_the_text_does_not_depend_on_the_file(tmp_path: Path):
    for name, rows in (("a.jsonl", [{"text": "x"}]), ("b.jsonl", [{"text": "y"}, {"text": "x"}])):
        (tmp_path / name).write_bytes(lines(rows))
    first, second = (list(read_documents(tmp_path / name, source="s")) for name in ("a.jsonl", "b.jsonl"))
    assert first[0].id == second[1].id != second[0].id


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"text": "x"', "not JSON"),
        (b'{"text": "\xff"}', "not JSON"),
        (b"", "not JSON"),
        (b'{"text": null}', "is empty"),
        (b"[1]", "expected a JSON object"),
        (b'{"body": "x"}', "expected a string under 'text'"),
        (b'{"text": 3}', "expected a string under 'text', found int"),
        (b'{"text": "  "}', "is empty"),
        (b'{"text": "x", "id": [1]}', "'id' is of type list"),
        (b'{"text": "x", "id": true}', "'id' is of type bool"),
        (b'{"text": "x", "metadata": 1}', "'metadata' is of type int"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, told: str):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(UserError) as caught:
        list(read_documents(path))
    assert str(caught.value).startswith(f"{path}:2: ")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xef\xbb\xbf" + lines(ROWS), r"begins with a byte order mark \(BOM\); save it"),
        (gzip.compress(lines(ROWS), mtime=0), "is compressed by gzip; name it .jsonl.gz"),
        (zstandard.compress(lines(ROWS)), "is compressed by zstd; name it .jsonl.zst"),
        (b"PAR1...", "is Parquet; name it .parquet"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_told(tmp_path: Path, content: bytes, told: str):
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    for read in (read_jsonl, lambda path: read_slice(plan([path], 1 << 20).slices[0])):
        with pytest.raises(UserError, match=rf"d\.jsonl: the file {told}"):
            list(read(path))


def test_a_null_text_of_parquet_is_an_empty_one(tmp_path: Path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x", None]}), tmp_path / "d.parquet")
    with pytest.raises(UserError, match=r"d\.parquet:2: the text under 'text' is empty"):
        list(read_documents(tmp_path / "d.parquet"))


def test_a_repeated_id_names_both_lines(tmp_path: Path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(lines([{"id": name, "text": "x"}, {"id": "same", "text": "y"}]))
    with pytest.raises(UserError, match=r"b\.jsonl:2: .*'same' stands at .*a\.jsonl:2"):
        list(read_documents([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]))


def test_missing_and_broken_files_are_told_in_one_line(tmp_path: Path):
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(lines(ROWS) * 99)[:-20])
    (tmp_path / "d.parquet").write_bytes(b"no")
    for name in ("none.jsonl", "d.jsonl.gz", "d.parquet", "none.parquet"):
        with pytest.raises(UserError, match=name):
            list(read_documents(tmp_path / name))


FRAMES = {"one frame": (0, 9), "two frames": (0, 4, 9), "an empty frame": (0, 0, 9), "a line over frames": (0, 4.5, 9)}


@pytest.mark.parametrize("bounds", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("checksum", [True, False])
def test_a_zst_file_is_refused_wherever_it_is_cut_but_at_the_end_of_a_frame(tmp_path: Path, bounds, checksum: bool):
    path, content = tmp_path / "d.jsonl.zst", lines([{"id": str(number), "text": "x" * 9} for number in range(9)])
    packer, size = zstandard.ZstdCompressor(write_checksum=checksum), len(content) // 9
    places = [int(bound * size) for bound in bounds]
    parts = [content[start:end] for start, end in pairwise(places)]
    packed = [packer.compress(part) for part in parts]
    ends = {sum(map(len, packed[:count])): b"".join(parts[:count]) for count in range(len(parts) + 1)}
    whole = b"".join(packed)
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        if cut in ends and len(ends[cut]) % size == 0:
            assert list(read_jsonl(path)) == [orjson.loads(line) for line in ends[cut].splitlines()]
        else:
            told = "not JSON" if cut in ends else "the compressed file is broken here"
            with pytest.raises(UserError, match=told):
                list(read_jsonl(path))


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.jsonl.zst"])
def test_what_is_written_is_read(tmp_path: Path, name: str):
    assert write_jsonl(tmp_path / "sub" / name, ROWS) == 3
    assert list(read_jsonl(tmp_path / "sub" / name)) == ROWS
    first = (tmp_path / "sub" / name).read_bytes()
    write_jsonl(tmp_path / "sub" / name, ROWS)
    assert (tmp_path / "sub" / name).read_bytes() == first


def test_a_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path: Path, monkeypatch):
    path = tmp_path / "out.jsonl"
    write_jsonl(path, ROWS)
    before = path.read_bytes()

    def rows():
        yield {"a": 1}
        raise RuntimeError("source failed")

    with pytest.raises(RuntimeError):
        write_jsonl(path, rows())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full; free some space"):
        write_jsonl(path, ROWS)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_has_left_is_taken_away_and_that_of_a_living_one_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "c[1].jsonl"
    code = (
        "import os, sys; from pathlib import Path; from data_prep.readers import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])), atomic_file(Path(sys.argv[2])): os.kill(os.getpid(), 9)"
    )
    beside, other = f"{out}.failed.jsonl", tmp_path / "d.jsonl"
    for second in (beside, other):
        done = subprocess.run([sys.executable, "-c", code, str(out), str(second)], timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL
    (others,) = tmp_path.glob(".d.jsonl.*")
    dead = {path.name for path in tmp_path.iterdir()} - {others.name}
    assert len(dead) == 3 and all(name.startswith(".c[1].jsonl.") for name in dead)
    elsewhere = tmp_path / ".c[1].jsonl.another-machine.999999999.x.partial"
    elsewhere.touch()
    hidden = tmp_path / f".c[1].jsonl.{socket.gethostname()}.999999999.x.partial"
    with atomic_file(out) as stream, hidden.open("wb") as held:
        assert lock(held)  # by a process whose number is of another container
        stream.write(b"whole")
        sweep_partials(out)
        assert {path.name for path in tmp_path.iterdir()} & dead == set() and hidden.exists()
    assert out.read_bytes() == b"whole"

    def refused(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("data_prep.locks.fcntl.flock", refused)
    with atomic_file(out) as stream:
        stream.write(b"again")
        sweep_partials(out)
    assert out.read_bytes() == b"again"
    assert {path.name for path in tmp_path.iterdir()} == {out.name, others.name, elsewhere.name}
