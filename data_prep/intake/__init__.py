"""Documents in, of any accepted form; a row that is none becomes a Drop with its place and its reason.

Inputs are, one or several:

    corpus.jsonl  .json  .ndjson  (.gz, .zst)   one JSON object a line
    corpus.parquet                              one document a row
    notes.txt                                   one document a file
    a folder, or a glob with **                 such files, by name; hidden ones are left, others are an `other_kind`
    a folder that `save_to_disk` wrote, OWNER/NAME, OWNER/NAME:CONFIGURATION or hf://NAME    Hugging Face datasets

each also as NAME=INPUT, NAME being that of its corpus.  `data_prep.intake.duplicates` finds the ids that recur.

Reasons: `blank_line`, `not_json`, `not_an_object`, `bad_utf8` (half a surrogate pair among it), `nul_byte`, `too_long`;
`no_text`, `text_not_a_string`, `only_spaces`, `id_not_a_string`, `source_not_a_string`, `metadata_not_an_object`;
`unreadable_value` (a cell that has no form in Python, or metadata none in JSON); `broken_file` (the rest of a file, row
group or stream), `empty_file`, `other_kind`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.document_rows import RowFault, row_document
from data_prep.intake.drops import Drop, Placed, Row, dropped
from data_prep.intake.inputs import Input, find_inputs
from data_prep.intake.tables import with_plain_metadata
from data_prep.records import Document
from data_prep.settings import IntakeSettings

__all__ = ["Drop", "IntakeSettings", "read", "read_placed"]


def read(inputs: Sequence[Path | str] | Path | str, settings: IntakeSettings) -> Iterator[Document | Drop]:
    """The documents of all inputs and what was dropped, in order; the inputs are found and opened in this call.

    Errors: a UserError for an input that is missing, of a kind that is not read, or cannot be opened.
    """
    return (item for _, item in read_placed(inputs, settings))


def read_placed(inputs: Sequence[Path | str] | Path | str, settings: IntakeSettings) -> Iterator[Placed[Document]]:
    """As `read`, each with its place: FILE:LINE, FILE:ROW, NAME:ROW, or FILE.  Errors: as `read`."""
    found = find_inputs([inputs] if isinstance(inputs, Path | str) else inputs, settings)
    return (_document(*row, one, settings) for one in found for row in one.rows())


def _document(where: str, row: Row | Drop, one: Input, settings: IntakeSettings) -> Placed[Document]:
    if isinstance(row, Drop):
        return where, row
    document = row_document(row, settings.text_key, settings.id_key, one.source)
    if isinstance(document, RowFault):
        return dropped(where, document.reason, document.problem)
    if "\0" in document.text:
        return dropped(where, "nul_byte", f"character {document.text.index('\0'):,} of the text")
    if one.is_json:
        return where, document
    try:
        return where, with_plain_metadata(document)
    except TypeError as error:
        return dropped(where, "unreadable_value", f"metadata that JSON cannot hold: {error}")
