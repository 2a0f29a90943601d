"""A row of a corpus -> its Document, or what is wrong with the row: the one rule for all readers of documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import xxhash

from data_prep.records import Document


@dataclass(frozen=True, slots=True)
class RowFault:
    """Why a row is no document: a word to count by, the problem in a sentence, and its mend."""

    reason: str
    problem: str
    mend: str


def row_document(row: dict[str, Any], text_key: str, id_key: str, source: str) -> Document | RowFault:
    """The document of a row, which is used up.

    An id may be a string or an integer; without one it is a hash of source and text.  A row's own `source` goes before
    the argument; a null source or metadata is as good as none.  All other keys are kept in the metadata.
    """
    text = row.pop(text_key, None) if text_key in row else _ABSENT
    if not isinstance(text, str) or not text or text.isspace():
        return _text_fault(text, text_key)
    identifier, own_source, metadata = row.pop(id_key, None), row.pop("source", None), row.pop("metadata", None)
    if identifier is not None and (isinstance(identifier, bool) or not isinstance(identifier, str | int)):
        return _type_fault("id_not_a_string", id_key, identifier)
    if own_source is None:
        own_source = source
    elif not isinstance(own_source, str):
        return _type_fault("source_not_a_string", "source", own_source)
    if metadata is None:
        metadata = {}
    elif not isinstance(metadata, dict):
        return _type_fault("metadata_not_an_object", "metadata", metadata)
    if identifier is None or identifier == "":
        identifier = content_id(own_source, text)
    return Document(str(identifier), text, own_source, {**row, **metadata})


def content_id(source: str, text: str) -> str:
    """The id of a document that has none: the same text of the same corpus has the same id wherever it stands."""
    return xxhash.xxh3_128_hexdigest(f"{source}\x1f{text}".encode())


_ABSENT = object()


def _text_fault(text: object, text_key: str) -> RowFault:
    if text is None:
        return RowFault("no_text", f"the text under '{text_key}' is empty", "remove the line")
    if isinstance(text, str):
        return RowFault("only_spaces", f"the text under '{text_key}' is empty", "remove the line")
    reason, found = ("no_text", "no such key") if text is _ABSENT else ("text_not_a_string", type(text).__name__)
    mend = "name the text key, or mend the line"
    return RowFault(reason, f"expected a string under '{text_key}', found {found}", mend)


def _type_fault(reason: str, key: str, value: object) -> RowFault:
    return RowFault(reason, f"'{key}' is of type {type(value).__name__}", "mend the line")
