"""Lines in, documents and drops out: every fault of a line is a counted drop with its place, and nothing is lost."""

from __future__ import annotations

import gzip
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from intake_cases import BAD_LINES, LIMIT, PACKED, jsonl, naive_jsonl, told, write_packed

from data_prep.document_rows import content_id
from data_prep.intake import Drop, IntakeSettings, read, read_placed
from data_prep.readers import read_documents
from data_prep.records import Document

SETTINGS = IntakeSettings(max_document_bytes=LIMIT)


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.values(), ids=BAD_LINES)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_a_bad_line_is_a_drop_with_its_place_and_the_next_is_read(
    tmp_path: Path, line: bytes, reason: str, end: bytes
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "before"}' + end + line + end + b'{"text": "after"}')
    before, drop, after = read(path, SETTINGS)
    assert isinstance(before, Document) and isinstance(after, Document) and isinstance(drop, Drop)
    assert (before.text, after.text) == ("before", "after")
    assert (drop.where, drop.reason) == (f"{path}:2", reason)
    assert len(drop.detail) <= 200 and "\n" not in drop.detail
    assert bool(drop.detail) == (reason != "blank_line")


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("seed", range(12))
def test_each_line_is_a_document_or_a_drop(tmp_path: Path, suffix: str, seed: int) -> None:
    content, expected = jsonl(seed)
    path = write_packed(tmp_path, "in", suffix, content)
    found = list(read_placed([path], SETTINGS))
    assert told(item for _, item in found) == expected
    assert [where for where, _ in found] == [f"{path}:{number}" for number in range(1, len(expected) + 1)]
    assert all(item.where == where for where, item in found if isinstance(item, Drop))


_PIECES = st.sampled_from(
    [
        *(
            b"\n",
            b"\r\n",
            b"\r",
            b"{",
            b"}",
            b'"text":',
            b'"a b"',
            b'"id":',
            b"1",
            b",",
            b"null",
            b"\0",
            b"\xff",
            b" ",
            b"[",
        ),
        *(b"\xef\xbb\xbf", b'{"text":"x"}', b'{"text":"y","id":"\\ud800"}\n', b"\\u0000", b"x" * 30),
    ]
)


@given(st.lists(_PIECES | st.binary(max_size=4), max_size=25), st.sampled_from(list(PACKED)))
def test_any_bytes_are_read_as_the_plainest_reader_does(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], suffix: str
) -> None:
    # A first line that begins as a compressed file does is refused before anything is read: by another test.
    content = b" " + b"".join(pieces) if suffix == ".jsonl" and pieces else b"".join(pieces)
    path = write_packed(tmp_path_factory.mktemp("in"), "in", suffix, content)
    found = list(read(path, IntakeSettings(max_document_bytes=40)))
    if content:
        assert [item.text if isinstance(item, Document) else None for item in found] == naive_jsonl(content, 40)
    else:
        assert [item.reason for item in found if isinstance(item, Drop)] == ["empty_file"]


def test_documents_are_those_of_the_strict_reader(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "id": 7, "url": "u", "metadata": {"k": [1, {"x": None}]}},
        {"text": "b", "source": "own"},
        {"text": "c", "id": ""},
        {"text": "d", "source": None, "metadata": None},
    ]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    found = list(read(path, IntakeSettings(source="corpus")))
    assert found == list(read_documents(path, source="corpus"))
    assert [item.id for item in found if isinstance(item, Document)] == [
        "7",
        content_id("own", "b"),
        content_id("corpus", "c"),
        content_id("corpus", "d"),
    ]


def test_keys_are_settable(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"body": "x", "key": 3, "text": "y"}\n{"text": "z"}')
    found = list(read(path, IntakeSettings(text_key="body", id_key="key")))
    assert found[0] == Document("3", "x", "", {"text": "y"})
    assert found[1] == Drop(f"{path}:2", "no_text", "expected a string under 'body', found no such key")


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"], ids=["no end", "LF", "CRLF"])
@pytest.mark.parametrize("last", [False, True], ids=["another follows", "last"])
@pytest.mark.parametrize("over", [-1, 0, 1, 2, 3, 400_000])
def test_a_line_may_be_as_long_as_the_limit(tmp_path: Path, end: bytes, last: bool, over: int) -> None:
    """Around the limit each line end counts for nothing, and what follows is the next line."""
    frame = len(b'{"text": ""}')
    line = b'{"text": "%s"}' % (b"x" * (LIMIT - frame + over))
    path = tmp_path / "in.jsonl"
    path.write_bytes(line + end + (b"" if last else (b"" if end else b"\n") + b'{"text": "next"}'))
    first, *rest = read(path, SETTINGS)
    if over > 0:
        assert first == Drop(f"{path}:1", "too_long", f"a line of {LIMIT + over:,} bytes, the most is {LIMIT:,}")
    else:
        assert isinstance(first, Document)
    assert told(rest) == ([] if last else [("text", "next")])


def test_a_line_of_carriage_returns_at_the_limit_stays_one_line(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    for count in range(LIMIT - 3, LIMIT + 6):
        path.write_bytes(b" " * count + b"\r\r\r" + b'\n{"text": "next"}')
        reason, following = told(read(path, SETTINGS))
        assert reason == ("reason", "too_long" if count + 2 > LIMIT else "blank_line")
        assert following == ("text", "next")


@pytest.mark.parametrize("suffix", PACKED)
def test_a_line_of_50_mb_is_passed_over_in_little_memory(tmp_path: Path, suffix: str) -> None:
    content = b'{"text": "%s"}\n{"text": "after"}' % (b"x" * 50_000_000)
    path = write_packed(tmp_path, "in", suffix, content)
    settings = IntakeSettings(max_document_bytes=1 << 20)
    tracemalloc.start()
    found = list(read(path, settings))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told(found) == [("reason", "too_long"), ("text", "after")]
    assert peak < 8 << 20


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_gzip_file_gives_what_it_has_and_one_drop(tmp_path: Path, share: float) -> None:
    packed = gzip.compress(b"".join(b'{"text": "%d"}\n' % number for number in range(30_000)))
    packed = packed[: 20 + int((len(packed) - 21) * share)]
    path, after = tmp_path / "in.jsonl.gz", tmp_path / "next.jsonl"
    path.write_bytes(packed)
    after.write_bytes(b'{"text": "next"}')
    *documents, drop, following = read([path, after], SETTINGS)
    whole_lines = zlib.decompressobj(wbits=31).decompress(packed).count(b"\n")
    assert [item.text for item in documents if isinstance(item, Document)] == [str(n) for n in range(whole_lines)]
    assert isinstance(drop, Drop) and drop.reason == "broken_file" and drop.where == f"{path}:{whole_lines + 1}"
    assert told([following]) == [("text", "next")]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_zstd_file_gives_what_it_has_but_for_a_buffer_and_one_drop(tmp_path: Path, share: float) -> None:
    content = b"".join(b'{"text": "%x"}\n' % (number**5) for number in range(30_000))
    packed = zstandard.compress(content)
    packed = packed[: 20 + int((len(packed) - 21) * share)]
    path = tmp_path / "in.jsonl.zst"
    path.write_bytes(packed)
    *documents, drop = read(path, SETTINGS)
    had = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    kept = b"".join(b'{"text": "%s"}\n' % item.text.encode() for item in documents if isinstance(item, Document))
    assert had.startswith(kept) and len(had) - len(kept) < 8192 + 100
    assert isinstance(drop, Drop)
    assert (drop.where, drop.reason) == (f"{path}:{len(documents) + 1}", "broken_file")


def test_what_follows_a_frame_and_is_none_is_one_drop(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.zst"
    path.write_bytes(zstandard.compress(b'{"text": "%s"}\n' % (b"x" * 3000) * 9) + b"no frame at all")
    *documents, drop = read(path, SETTINGS)
    assert 6 <= len(documents) <= 9
    assert isinstance(drop, Drop) and (drop.where, drop.reason) == (f"{path}:{len(documents) + 1}", "broken_file")


def test_a_file_not_packed_as_its_name_says_is_one_drop(tmp_path: Path) -> None:
    for suffix in (".gz", ".zst"):
        path = tmp_path / f"in.jsonl{suffix}"
        path.write_bytes(b'{"text": "x"}\n')
        assert [item.reason for item in read(path, SETTINGS) if isinstance(item, Drop)] == ["broken_file"]


def test_empty_files_are_told(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet", "e.txt"):
        (tmp_path / name).touch()
    write_packed(tmp_path, "f", ".jsonl.gz", b"")
    write_packed(tmp_path, "g", ".jsonl.zst", b"")
    assert [item.reason for item in read(tmp_path, SETTINGS) if isinstance(item, Drop)] == ["empty_file"] * 7


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    contents = {
        "a.txt": (b"first\r\nsecond\n", "first\r\nsecond\n"),
        "b.txt": (b"\xef\xbb\xbfwith a mark", "with a mark"),
        "c.txt": (b"PAR1 is how it begins", "PAR1 is how it begins"),
    }
    for name, (content, _) in contents.items():
        (tmp_path / name).write_bytes(content)
    found = list(read(tmp_path, IntakeSettings(text_key="body", source="notes")))
    assert found == [
        Document(content_id("notes", text), text, "notes", {"file": name}) for name, (_, text) in contents.items()
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"a\xff", "bad_utf8"), (b"a\0", "nul_byte"), (b" \n\n", "only_spaces"), (b"x" * (LIMIT + 1), "too_long")],
)
def test_a_bad_text_file_is_a_drop(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(content)
    (drop,) = read(path, SETTINGS)
    assert isinstance(drop, Drop) and (drop.where, drop.reason) == (str(path), reason)


def test_importing_the_room_loads_nothing_heavy() -> None:
    heavy = ("datasets", "torch", "pyarrow", "numpy")
    code = f"import sys, data_prep.intake; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
