"""Example texts with pairs, shown before each chain to a model that is not tuned as a synthesizer.

The built-in ones (demonstrations.jsonl) are our own wording, Apache-2.0.  Demonstrations stand in
prompts only; they are never part of a chain.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.errors import UserError
from data_prep.readers import read_jsonl
from data_prep.records import AugmentedText

BUILTIN = Path(__file__).with_name("demonstrations.jsonl")


def load_demonstrations(path: Path | str | None) -> list[AugmentedText]:
    """The demonstrations of a JSONL file of `{"text": ..., "pairs": [{"question", "answer"}, ...]}`.

    `None` gives none, `builtin` ours.

    Raises:
        UserError: names the file and line of one that has no text or no pairs.
    """
    if path is None:
        return []
    chosen = file_of(path)
    demonstrations = []
    for number, row in enumerate(read_jsonl(chosen), 1):
        try:
            demonstration = AugmentedText.from_json({"document_id": f"demonstration-{number}", **row})
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{chosen}:{number}", f"not a demonstration ({error!r})", "expected text and pairs"
            ) from error
        if not demonstration.text.strip() or not demonstration.pairs:
            raise UserError(f"{chosen}:{number}", "a demonstration needs a text and at least one pair", "add them")
        demonstrations.append(demonstration)
    return demonstrations


def file_of(path: Path | str) -> Path:
    """The file that is meant."""
    return BUILTIN if str(path) == "builtin" else Path(path)
