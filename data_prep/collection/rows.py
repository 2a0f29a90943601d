"""Rows of a task dataset -> examples: a context with the pairs of all rows that share it.

    {"context": TEXT, "QA_list": [{"Q": QUESTION, "A": ANSWER}, ...], "QA_type": KIND}

is the schema of the released tuning collection; other keys are passed over, for what kind a pair is its wording says.
The dataset's name is its folder's: DATASET/shard/0.jsonl, or DATASET/0.jsonl.  A pair may also have `options` (a list
of strings; `A` is one of them, or its letter) and `rationale`: the two are put into the wire format's wording.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from data_prep.collection.settings import CollectSettings
from data_prep.errors import UserError
from data_prep.readers import read_rows
from data_prep.records import AugmentedText, Pair
from data_prep.synthesis.wire import CONCLUSION, THINK_LINE, recognise, split_question

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
# A folder of this name is no dataset but holds the files of one.
SHARDS = "shard"


@dataclass(slots=True)
class Gathered:
    """The examples of one dataset, what was counted, and each row and pair that was dropped, with its place."""

    examples: list[AugmentedText]
    counts: Counter[str] = field(default_factory=Counter)
    dropped: list[tuple[str, str]] = field(default_factory=list)

    def drop(self, where: str, reason: str) -> None:
        """Counts and keeps what goes; the reason begins with what it is, a row or a pair."""
        self.counts[reason] += 1
        self.dropped.append((where, reason))


def files_by_dataset(inputs: Iterable[Path | str]) -> dict[str, list[Path]]:
    """The files below the inputs, by the name of their dataset; both in order.

    Raises:
        UserError: an input that does not exist, or holds no such file.
    """
    found: dict[str, list[Path]] = {}
    for path in map(Path, inputs):
        files = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES)) if path.is_dir() else [path]
        if not files:
            raise UserError(path, f"no file in it ends in {', '.join(SUFFIXES)}", "give the folder of a collection")
        for file in files:
            folder = file.absolute().parent
            name = folder.parent.name if folder.name == SHARDS else folder.name
            found.setdefault(name, []).append(file)
    return dict(sorted(found.items()))


def gather(dataset: str, files: Sequence[Path], settings: CollectSettings) -> Gathered:
    """The examples of a dataset, in the order of their first rows.

    Raises:
        UserError: a file that cannot be read, or a line that is not JSON; with file and line.
    """
    gathered = Gathered([])
    by_context: dict[str, dict[str, Pair]] = {}
    for where, row in (row for file in files for row in read_rows(file)):
        gathered.counts["rows"] += 1
        context, items = row.get(settings.context_key), row.get(settings.pairs_key)
        if not isinstance(context, str) or not context.strip():
            gathered.drop(where, "row_without_context")
        elif not isinstance(items, list) or not items:
            gathered.drop(where, "row_without_pairs")
        else:
            _add_pairs(by_context.setdefault(context, {}), items, where, gathered)
    gathered.examples = list(_examples(dataset, by_context, gathered.counts))
    return gathered


def pair_of(item: Any) -> Pair | str:
    """The pair that an item of a row says, in the wire format's wording; or the reason why it is none."""
    if not isinstance(item, dict) or not isinstance(item.get("Q"), str) or not isinstance(item.get("A"), str):
        return "pair_not_text"
    question, answer = item["Q"].strip(), item["A"].strip()
    options, rationale = item.get("options") or [], item.get("rationale") or ""
    if not isinstance(rationale, str) or not isinstance(options, list) or not all(isinstance(o, str) for o in options):
        return "pair_not_text"
    if not question or not answer:
        return "pair_without_answer" if question else "pair_without_question"
    if options and not split_question(question)[1]:
        listed = [" ".join(option.split()) for option in options]
        question += "\nOptions:" + "".join(f"\n- {option}" for option in listed)
        answer = _option(answer, listed)
    if rationale.strip():
        question += "" if question.endswith(THINK_LINE) else f"\n{THINK_LINE}"
        answer = f"{rationale.strip()}\n{CONCLUSION}{answer}"
    return recognise(question, answer)


def _option(answer: str, options: Sequence[str]) -> str:
    """The text of an option that is told by its letter: `B`, `(B)`, `B.`"""
    letter = answer.strip("().: ")
    place = ord(letter) - ord("A") if len(letter) == 1 else -1
    return options[place] if answer not in options and 0 <= place < len(options) else answer


def _add_pairs(pairs: dict[str, Pair], items: Sequence[Any], where: str, gathered: Gathered) -> None:
    """The pairs of a row beside those of its context already there, by their folded questions."""
    for number, item in enumerate(items):
        gathered.counts["pairs"] += 1
        pair = pair_of(item)
        if isinstance(pair, Pair) and pair.question.casefold() in pairs:
            pair = "pair_with_question_met_before"
        if isinstance(pair, str):
            gathered.drop(f"{where}, pair {number}", pair)
        else:
            pairs[pair.question.casefold()] = pair


def _examples(dataset: str, by_context: dict[str, dict[str, Pair]], counts: Counter[str]) -> Iterator[AugmentedText]:
    for context, pairs in by_context.items():
        if not pairs:
            counts["contexts_without_pairs"] += 1
            continue
        identifier = f"{dataset}:{xxhash.xxh3_128_hexdigest(context.encode())}"
        yield AugmentedText(identifier, context, tuple(pairs.values()), 0, len(context), dataset)
