"""ipt data render-instructions: rows of (system?, question, response) become training text.

As the paper mixes general instructions in: `"{question} {response}"`, a system prompt before it, one blank between; no
chat template, and BOS and EOS are the indexer's.  With the directory of a tokenizer its own chat template is used
instead, and what the template writes as control tokens is marked as such (see `chat`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.readers import beside, read_rows, write_json, write_jsonl
from data_prep.records import Origin, TrainingText
from data_prep.settings import InstructionSettings
from data_prep.templates.parts import Piece, spans_of, template


@dataclass(frozen=True, slots=True)
class Instruction:
    """One row; `system` may be empty."""

    question: str
    response: str
    system: str = ""


# The pieces of an instruction, or the reason why it is left out.
Renderer = Callable[[Instruction], list[Piece] | str]


def plain(instruction: Instruction) -> list[Piece] | str:
    """`"{question} {response}"`; a system prompt is part of the question."""
    asked = f"{instruction.system} {instruction.question}" if instruction.system else instruction.question
    return [Piece("question", asked, 0), template(" "), Piece("answer", instruction.response, 0)]


def render_instructions(
    settings: InstructionSettings, inputs: Iterable[Path | str], out_path: Path | str
) -> dict[str, Any]:
    """Writes OUT, one training text a row, and OUT.summary.json; returns what the summary says.

    Raises:
        UserError: a row without question or response, of a wrong type, or with an id met before; with file and line.
    """
    name, renderer = _renderer(settings)
    counts: Counter[str] = Counter(rows=0, written=0, blank_question=0, blank_response=0, rewritten_by_template=0)

    def texts() -> Iterator[dict[str, Any]]:
        for identifier, source, instruction in read_instructions(settings, inputs):
            counts["rows"] += 1
            pieces = _reason(instruction) or renderer(instruction)
            if isinstance(pieces, str):
                counts[pieces] += 1
                continue
            counts["written"] += 1
            text = "".join(piece.text for piece in pieces)
            origins = (Origin(identifier, source, checks=("",)),)
            yield TrainingText(identifier, text, origins, name, None, spans_of(pieces)).to_json()

    write_jsonl(out_path, texts())
    summary = {"template": name, **counts}
    write_json(beside(out_path, "summary.json"), summary)
    return summary


def _renderer(settings: InstructionSettings) -> tuple[str, Renderer]:
    """What renders a row, and the name it goes by in a training text."""
    if settings.chat_template is None:
        return "instruction", plain
    from data_prep.templates.chat import load_chat

    return load_chat(settings.chat_template)


def _reason(instruction: Instruction) -> str:
    """Why an instruction says nothing, or nothing."""
    if not instruction.question.strip():
        return "blank_question"
    return "" if instruction.response.strip() else "blank_response"


def read_instructions(
    settings: InstructionSettings, inputs: Iterable[Path | str]
) -> Iterator[tuple[str, str, Instruction]]:
    """(id, source, instruction) of each row; a row without an id is FILE:LINE."""
    seen: dict[str, str] = {}
    for path in map(Path, inputs):
        for where, row in read_rows(path):
            identifier = row.get(settings.id_key)
            if isinstance(identifier, bool) or not isinstance(identifier, str | int | None):
                problem = f"'{settings.id_key}' is of type {type(identifier).__name__}"
                raise UserError(where, problem, "give a string or a whole number, or none")
            name = f"{path.name}:{where.rpartition(':')[2]}" if identifier in (None, "") else str(identifier)
            if name in seen:
                raise UserError(
                    where, f"the id '{name}' stands at {seen[name]} already", "rename or remove one of them"
                )
            seen[name] = where
            system = _string(where, row, settings.system_key) if row.get(settings.system_key) is not None else ""
            question, response = (_string(where, row, key) for key in (settings.question_key, settings.response_key))
            source = row.get("source", path.stem)
            yield name, source if isinstance(source, str) else path.stem, Instruction(question, response, system)


def _string(where: str, row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        found = (
            f"found {type(value).__name__}" if key in row else f"there is none; its keys: {', '.join(row) or 'none'}"
        )
        raise UserError(where, f"expected a string under '{key}', {found}", "name the key, or mend the line")
    return value
