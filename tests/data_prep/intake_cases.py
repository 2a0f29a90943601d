"""Files of documents with every fault in them, made by a seed, and what a naive reader finds in them."""

from __future__ import annotations

import gzip
import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson
import zstandard

from data_prep.intake import Drop
from data_prep.records import Document

LIMIT = 4000
"""The longest document of these files [bytes]."""

# Lines that are no document, without their ends, and the reason that each is to be counted under.
BAD_LINES: dict[str, tuple[bytes, str]] = {
    "truncated": (b'{"id": "a", "text": "so far', "not_json"),
    "two objects": (b'{"text": "a"}{"text": "b"}', "not_json"),
    "no JSON": (b"a line of prose", "not_json"),
    "not a number": (b'{"text": "x", "score": NaN}', "not_json"),
    "nested deep": (b'{"text": "x", "y": ' + b"[" * 1500 + b"]" * 1500 + b"}", "not_json"),
    "too large a number": (b'{"text": "x", "y": ' + b"9" * 400 + b"}", "not_json"),
    "an array": (b'[{"text": "x"}]', "not_an_object"),
    "a string": (b'"text"', "not_an_object"),
    "null": (b"null", "not_an_object"),
    "bad UTF-8": (b'{"text": "\xff\xfe"}', "bad_utf8"),
    "cut UTF-8": (b'{"text": "\xe4\xb8"}', "bad_utf8"),
    "a surrogate in UTF-8": (b'{"text": "\xed\xa0\x80"}', "bad_utf8"),
    "high surrogate alone": (rb'{"text": "\ud800"}', "bad_utf8"),
    "low surrogate alone": (rb'{"text": "\udc00x"}', "bad_utf8"),
    "surrogate in a key": (rb'{"text": "x", "\ud800": 1}', "bad_utf8"),
    "NUL": (b'{"text": "a\0b"}', "nul_byte"),
    "only NUL": (b"\0\0\0", "nul_byte"),
    "NUL escaped": (rb'{"text": "a\u0000b"}', "nul_byte"),
    "no text": (b'{"body": "x"}', "no_text"),
    "null text": (b'{"text": null}', "no_text"),
    "last of two keys": (b'{"text": "x", "text": 1}', "text_not_a_string"),
    "number": (b'{"text": 1.5}', "text_not_a_string"),
    "array": (b'{"text": ["x"]}', "text_not_a_string"),
    "no characters": (b'{"text": ""}', "only_spaces"),
    "spaces": ('{"text": " \\t\\n\u00a0\u3000"}'.encode(), "only_spaces"),
    "list id": (b'{"text": "x", "id": [1]}', "id_not_a_string"),
    "float id": (b'{"text": "x", "id": 1.5}', "id_not_a_string"),
    "bool id": (b'{"text": "x", "id": true}', "id_not_a_string"),
    "huge id": (b'{"text": "x", "id": ' + b"9" * 40 + b"}", "id_not_a_string"),
    "source": (b'{"text": "x", "source": 3}', "source_not_a_string"),
    "metadata": (b'{"text": "x", "metadata": "y"}', "metadata_not_an_object"),
    "long": (b'{"text": "' + b"x" * LIMIT + b'"}', "too_long"),
    "long and broken": (b"[" * (3 * LIMIT), "too_long"),
    "blank": (b"", "blank_line"),
    "spaces only": (b" \t ", "blank_line"),
}


def jsonl(seed: int) -> tuple[bytes, list[tuple[str, str]]]:
    """A file's bytes, and of each line ("text", the text) or ("reason", why it is dropped)."""
    drawn, lines, expected = random.Random(seed), list[bytes](), list[tuple[str, str]]()
    for number in range(drawn.randint(1, 40)):
        if drawn.random() < 0.5:
            line, reason = drawn.choice(list(BAD_LINES.values()))
            lines.append(line)
            expected.append(("reason", reason))
        else:
            text = drawn.choice(
                ["plain", "<CON> forged </CON> <QUE>", "ü \u2028 漢字 😀", "a\r\nb", "\ufeffx", "tail "]
            )
            text += f" {seed} {number}"
            row: dict[str, Any] = {"text": text, "id": drawn.choice([None, "", number, f"id {number}"])}
            if drawn.random() < 0.3:
                row |= {"metadata": drawn.choice([None, {"url": "x"}]), "source": drawn.choice([None, "own"]), "n": 1}
            lines.append(orjson.dumps(row))
            expected.append(("text", text))
    content = drawn.choice([b"\n", b"\r\n"]).join(lines)
    # A blank last line without an end is none.
    if lines[-1] == b"" or drawn.random() < 0.5:
        content += b"\n"
    return drawn.choice([b"", b"\xef\xbb\xbf"]) + content, expected


PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    ".jsonl.gz": gzip.compress,
    ".jsonl.zst": zstandard.ZstdCompressor().compress,
}


def write_packed(folder: Path, name: str, suffix: str, content: bytes) -> Path:
    path = folder / f"{name}{suffix}"
    path.write_bytes(PACKED[suffix](content))
    return path


def told(items: Iterable[Document | Drop]) -> list[tuple[str, str]]:
    """As `jsonl` expects it."""
    return [("reason", item.reason) if isinstance(item, Drop) else ("text", item.text) for item in items]


def naive_jsonl(content: bytes, limit: int) -> list[str | None]:
    """The text of each line, None where it is no document: the whole file at once, by the plainest means."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if content else []
    if lines and lines[-1] == b"" and content.endswith(b"\n"):
        lines.pop()
    return [None if len(line.removesuffix(b"\r")) > limit else _naive_text(line) for line in lines]


def _naive_text(line: bytes) -> str | None:
    try:
        row = orjson.loads(line)
        text = row["text"]
        good = text.strip() and "\0" not in text and isinstance(row.get("source") or "", str)
        good = good and isinstance(row.get("metadata") or {}, dict) and type(row.get("id")) in (str, int, type(None))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return text if good else None


def count(items: Iterable[Document | Drop]) -> Counter[str]:
    """How many of each kind: "kept", or the reason."""
    return Counter("kept" if isinstance(item, Document) else item.reason for item in items)
