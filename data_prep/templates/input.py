"""Chains as rendering takes them: read, and of the right types throughout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.errors import UserError
from data_prep.readers import read_chains
from data_prep.records import AugmentedText, Chain


def sound_chains(path: Path | str) -> Iterator[Chain]:
    """The chains of a file.

    Raises:
        UserError: a line that is no chain, or a value of a wrong type in one; with file and chain.
    """
    for chain in read_chains(path):
        where = f"{path}: chain {chain.id!r}"
        _check(where, "id", chain.id, str)
        for text in chain.texts:
            check_text(where, text)
        yield chain


def check_text(where: str, text: AugmentedText) -> None:
    """A text and its pairs have values of the right types.

    Raises:
        UserError: one has not; `where` and its key are named.
    """
    for key, value in (("document_id", text.document_id), ("text", text.text), ("source", text.source)):
        _check(where, key, value, str)
    _check(where, "start", text.start, int)
    if text.start < 0:
        raise UserError(where, f"'start' is {text.start}", "a place in a document counts from 0")
    for pair in text.pairs:
        for key, value in (("question", pair.question), ("answer", pair.answer)):
            _check(where, key, value, str)
        for key, values in (("options", pair.options), ("checks", pair.checks)):
            for value in values:
                _check(where, key, value, str)


def _check(where: str, key: str, value: object, kind: type) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        problem = f"expected {kind.__name__} under '{key}', found {type(value).__name__}"
        raise UserError(where, problem, "give the output of `ipt data synthesize` or `check`")
