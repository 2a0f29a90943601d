"""JSONL, compressed or not, one line at a time: the objects, and why a line has none.  And .txt files.

A byte order mark at the start of a file is passed over.  Of a key that stands twice in an object the last one counts,
and an integer beyond 64 bits becomes a float, both as orjson has it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import orjson

from data_prep.intake.drops import Placed, Row, dropped
from data_prep.readers import decompressed

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What is passed over of a line that is too long, at a time [bytes].
_PIECE_BYTES = 1 << 18


def line_rows(path: Path, name: str, limit: int) -> Iterator[Placed[Row]]:
    """(NAME:LINE, object or drop) of each line; one over `limit` bytes, its end not counted, is not held in memory.

    Errors: an OSError of the system's, as of a disk that fails.
    """
    number = 0
    try:
        with decompressed(path) as stream:
            while line := stream.readline(limit + 2):
                # Two more bytes hold any line's end; without one the line goes on.
                cut = len(line) == limit + 2 and not line.endswith(b"\n")
                length = _pass_over(stream, line) if cut else len(line) - _end(line)
                number += 1
                where = f"{name}:{number}"
                if length > limit:
                    yield dropped(where, "too_long", f"a line of {length:,} bytes, the most is {limit:,}")
                else:
                    yield _row(where, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line)
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's fault; what decompresses gives no number
        yield dropped(f"{name}:{number + 1}", "broken_file", error)
        return
    if number == 0:
        yield dropped(name, "empty_file", "there is no line in it")


def text_file(path: Path, name: str, limit: int, text_key: str) -> Placed[Row]:
    """(NAME, a row of the file's whole text or a drop); its metadata are the name of the file."""
    with path.open("rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        return dropped(name, "too_long", f"a file of {path.stat().st_size:,} bytes, the most is {limit:,}")
    if not content:
        return dropped(name, "empty_file", "there is no text in it")
    try:
        return name, {text_key: content.removeprefix(BYTE_ORDER_MARK).decode(), "metadata": {"file": Path(name).name}}
    except UnicodeDecodeError as error:
        return dropped(name, "bad_utf8", error)


def _pass_over(stream: IO[bytes], start: bytes) -> int:
    """Reads on to the end of the line that begins so; its length [bytes]."""
    length, tail = len(start), start[-1:]
    while not tail.endswith(b"\n") and (piece := stream.readline(_PIECE_BYTES)):
        length += len(piece)
        tail = (tail + piece[-2:])[-2:]
    return length - _end(tail)


def _end(line: bytes) -> int:
    """The length of a line's end [bytes]."""
    return 2 if line.endswith(b"\r\n") else 1 if line.endswith(b"\n") else 0


def _row(where: str, line: bytes) -> Placed[Row]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return _no_json(where, line, error)
    if not isinstance(row, dict):
        return dropped(where, "not_an_object", f"expected a JSON object, found {type(row).__name__}")
    return where, row


def _no_json(where: str, line: bytes, error: orjson.JSONDecodeError) -> Placed[Row]:
    if not line.strip():
        return dropped(where, "blank_line", "")
    try:
        line.decode()
    except UnicodeDecodeError as found:
        return dropped(where, "bad_utf8", found)
    if b"\0" in line:
        return dropped(where, "nul_byte", error)
    # A half of a surrogate pair, escaped: JSON's grammar allows it, but no text in UTF-8 can have it.
    return dropped(where, "bad_utf8" if "surrogate" in str(error) else "not_json", error)
