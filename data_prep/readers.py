"""Documents in, JSON lines in and out: JSONL (plain, .gz, .zst) and Parquet, one row at a time.

Reading streams and names the file and line of whatever it cannot take.  Writing is atomic: a file
either stands complete under its name or not at all.
"""

from __future__ import annotations

import errno
import glob
import gzip
import io
import os
import socket
import tempfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import orjson
import zstandard

from data_prep.document_rows import RowFault, row_document
from data_prep.errors import UserError
from data_prep.locks import is_alive, lock
from data_prep.parquet_rows import parquet_rows
from data_prep.records import Chain, Document
from data_prep.shards import Slice

# What stands at the start of a file that is not what its name says.
SIGNATURES = {
    b"\xef\xbb\xbf": ("begins with a byte order mark (BOM)", "save it as UTF-8 without one"),
    b"\x1f\x8b": ("is compressed by gzip", "name it .jsonl.gz"),
    b"\x28\xb5\x2f\xfd": ("is compressed by zstd", "name it .jsonl.zst"),
    b"PAR1": ("is Parquet", "name it .parquet"),
}
# The row of a blank line, known by being this object.
BLANK_ROW: dict[str, Any] = {}
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def read_documents(
    paths: Path | str | Iterable[Path | str], *, text_key: str = "text", id_key: str = "id", source: str = ""
) -> Iterator[Document]:
    """The documents of one or more files, in order.

    A row's id may be a string or an integer; without one it is a hash of source and text, so the
    same text has the same id wherever it stands.  A row's own `source` goes before the argument.
    Keys that are not text, id, source or metadata are kept in the metadata.

    Raises:
        UserError: names file:line; not a JSON object, no text, a wrong type, or an id met before.
    """
    seen: dict[str, str] = {}
    for path in [Path(paths)] if isinstance(paths, Path | str) else map(Path, paths):
        for where, row in _rows(path, text_key):
            document = row_document(row, text_key, id_key, source)
            if isinstance(document, RowFault):
                raise UserError(where, document.problem, document.mend)
            if document.id in seen:
                problem = f"document id '{document.id}' stands at {seen[document.id]} already"
                raise UserError(where, problem, "ids are unique in a corpus: rename or remove one of the two")
            seen[document.id] = where
            yield document


def read_jsonl(path: Path | str) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file (.jsonl, .jsonl.gz, .jsonl.zst), in order.

    Raises:
        UserError: names file:line.
    """
    for _, row in _json_rows(Path(path)):
        yield row


def read_rows(path: Path | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of a JSONL or Parquet file; a Parquet row's nulls are left out.

    Raises:
        UserError: names file:line.
    """
    return _rows(Path(path))


def read_chains(path: Path | str) -> Iterator[Chain]:
    """The chains of a file that `ipt data synthesize` or `check` wrote.

    Raises:
        UserError: a line that is not JSON, or not a chain; with file and line.
    """
    for where, row in _json_rows(Path(path)):
        try:
            yield Chain.from_json(row)
        except (KeyError, TypeError, AttributeError) as error:
            mend = "give the output of `ipt data synthesize` or `check`"
            raise UserError(where, f"not a chain ({type(error).__name__}: {error})", mend) from error


def write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes one object a line and returns their number; the name's suffix chooses the compression.

    Raises:
        UserError: the disk is full; nothing is left behind then, nor when `rows` raises.
    """
    count = 0
    with jsonl_file(Path(path)) as stream:
        for row in rows:
            stream.write(json_line(row))
            count += 1
    return count


@contextmanager
def jsonl_file(path: Path) -> Iterator[Any]:
    """A stream for lines of JSON, compressed as the suffix says; the file is in place when the block ends well."""
    with atomic_file(path) as raw, _compressed(path, raw) as stream:
        yield stream


def json_line(row: Mapping[str, Any]) -> bytes:
    """One object as a line of JSONL."""
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def write_json(path: Path | str, value: Mapping[str, Any]) -> None:
    """Writes one object, indented, atomically."""
    with atomic_file(Path(path)) as stream:
        stream.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def beside(out: Path | str, kind: str) -> Path:
    """The file of that kind that goes with `out`: chains.jsonl -> chains.jsonl.summary.json."""
    return Path(out).with_name(f"{Path(out).name}.{kind}")


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file under a temporary name in the same folder, renamed to `path` when the block ends well.

    Raises:
        UserError: the disk is full, told in one line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = f"{socket.gethostname()}.{os.getpid()}"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{writer}.", suffix=".partial")
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            lock(stream)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(path, "the disk is full", "free some space and run again") from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def sweep_partials(out: Path) -> None:
    """Takes away what processes of this machine that were killed have left of `out` and of the files beside it.

    Not what a living process writes, whose number the name tells; one that has a number of another container's, and is
    not seen here, holds a lock.  Of other machines nothing is known.
    """
    for path in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        whose, number, _ = path.name.removesuffix(".partial").rsplit(".", 2)
        if not whose.endswith(f".{socket.gethostname()}") or not number.isdecimal() or is_alive(int(number)):
            continue
        with suppress(FileNotFoundError, PermissionError), path.open("r+b") as file:
            if lock(file):
                path.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_slice(part: Slice, columns: Collection[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of a slice of a JSONL or Parquet file; of Parquet all columns are read, or `columns`.

    A blank line is BLANK_ROW.

    Raises:
        UserError: names file:line.
    """
    path = part.path
    if path.suffix == ".parquet":
        yield from parquet_rows(path, range(part.start, part.end), part.first, columns)
    elif path.suffix in (".gz", ".zst"):
        yield from _json_rows(path, blank_lines=True)
    else:
        with path.open("rb", buffering=1 << 20) as stream:
            stream.seek(part.start)
            left = part.end - part.start
            for number, line in enumerate(stream, part.first):
                where = f"{path}:{number}"
                yield where, _json_object(where, line, blank_lines=True)
                left -= len(line)
                if left <= 0:
                    break


def _rows(path: Path, kept: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object); a Parquet row's nulls are left out, but for one under `kept`."""
    if path.suffix != ".parquet":
        return _json_rows(path)
    rows = parquet_rows(path)
    return (
        (where, {key: value for key, value in row.items() if value is not None or key == kept}) for where, row in rows
    )


def _json_rows(path: Path, blank_lines: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of a JSONL file; a blank line is BLANK_ROW, or refused."""
    where = str(path)
    try:
        with decompressed(path) as stream:
            for number, line in enumerate(stream, 1):
                where = f"{path}:{number}"
                yield where, _json_object(where, line, blank_lines)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(
            path, "no such file", "give the path of a .jsonl, .jsonl.gz, .jsonl.zst or .parquet file"
        ) from error
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's fault; what decompresses gives no number
        raise UserError(where, f"the compressed file is broken here ({error})", "write it again") from error


def _json_object(where: str, line: bytes, blank_lines: bool) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if blank_lines and not line.strip():
            return BLANK_ROW
        for signature, (problem, mend) in SIGNATURES.items():
            if line.startswith(signature) and where.endswith(":1"):
                raise UserError(where.removesuffix(":1"), f"the file {problem}", mend) from error
        raise UserError(where, f"not JSON ({error})", "mend or remove the line") from error
    if not isinstance(row, dict):
        raise UserError(where, f"expected a JSON object, found {type(row).__name__}", "mend or remove the line")
    return row


@contextmanager
def decompressed(path: Path) -> Iterator[IO[bytes]]:
    """The content of a file that may be compressed, as its suffix says.

    What is broken raises, while it is read, an EOFError, a zlib.error, or an OSError without a number.
    """
    with path.open("rb", buffering=1 << 18) as raw:
        if path.suffix == ".gz":
            yield gzip.GzipFile(fileobj=raw)  # type: ignore[misc]
        elif path.suffix == ".zst":
            import pyarrow

            # Of the readers at hand the one that does not take a frame cut short for the end.
            yield io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))
        else:
            yield raw


@contextmanager
def _compressed(path: Path, raw: IO[bytes]) -> Iterator[Any]:
    if path.suffix == ".gz":
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as stream:
            yield stream
    elif path.suffix == ".zst":
        with zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False) as stream:
            yield stream
    else:
        yield raw
