"""The results of all shards, in their order, as the files of the run: OUT and those beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import orjson

from data_prep.errors import UserError
from data_prep.readers import beside, json_line, jsonl_file, read_jsonl, write_json, write_jsonl
from data_prep.synthesis.shard import Row, reasons_of
from data_prep.synthesis.work import Work

FILES: Final = {"chain": "", "leftover": "leftover.jsonl", "failed": "failed.jsonl"} | {
    "rejected": "rejected.jsonl",
    "dropped": "dropped.jsonl",
}
"""Kind of a row -> what is added to OUT's name."""
DOCUMENTS: Final = "documents.jsonl.zst"
"""What is added for the documents themselves, as they were read."""
COUNTS: Final = ("pairs", "shots", "shots_dropped", "prompt_tokens", "completion_tokens")


def merge(work: Work, out: Path, identity: Mapping[str, Any], spent: Mapping[str, float]) -> dict[str, Any]:
    """Writes the files and returns the summary; the summary's file comes last, so that it vouches for the others.

    That of an earlier run stays until then: while the folder of a run is there, a summary vouches for nothing; and to
    take it away might take away one that another process has just written.

    Raises:
        UserError: shards were made by different engines.
    """
    counts, reasons = Counter[str](), {kind: Counter[str]() for kind in ("leftover", "rejected", "dropped")}
    engine: dict[str, Any] | None = None
    with ExitStack() as stack:
        streams = {kind: stack.enter_context(jsonl_file(path_of(out, kind))) for kind in FILES}
        for row in _rows(work):
            if "done" in row:
                counts.update(row["done"]["counts"])
                engine = _same_engine(work, engine, row["done"]["engine"])
                continue
            (kind,) = row
            counts[kind] += 1
            if found := reasons_of(row):
                reasons[found[0]][found[1]] += 1
            streams[kind].write(json_line(row[kind]))
    if not work.is_retry:
        write_jsonl(beside(out, DOCUMENTS), work.document_rows())
    summary = {
        "documents": counts["documents"],
        "documents_left_raw": 0 if work.is_retry else work.plan["documents"] - counts["documents"],
        "texts": counts["texts"],
        "texts_with_pairs": counts["texts"] - counts["leftover"],
        "chains": counts["chain"],
        **{name: counts[name] for name in COUNTS},
        **_speed(spent),
        **{kind: dict(sorted(found.items())) for kind, found in reasons.items()},
        "failed": counts["failed"],
        "rows": work.plan.get("rows", 0),
        "engine": engine or {},
        "made_of": dict(identity),
    }
    write_json(beside(out, "summary.json"), summary)
    return summary


def path_of(out: Path, kind: str) -> Path:
    """The file for rows of that kind."""
    return beside(out, FILES[kind]) if FILES[kind] else out


def _rows(work: Work) -> Iterator[Row]:
    if work.dropped.exists():
        for row in read_jsonl(work.dropped):
            yield {"dropped": row}
    for shard in range(work.shards):
        yield from read_jsonl(work.result(shard))


def _same_engine(work: Work, before: dict[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    if before is not None and before != found:
        unlike = ", ".join(sorted(key for key in {*before, *found} if before.get(key) != found.get(key)))
        problem = f"its shards were made by engines that differ in {unlike}"
        raise UserError(work.root, problem, "remove its results folder, or the whole of it, and run again")
    return found


def _speed(spent: Mapping[str, float]) -> dict[str, float]:
    """What this run generated; what it found in journals and results of an earlier one does not count."""
    seconds, tokens = spent.get("seconds", 0.0), spent.get("new_completion_tokens", 0)
    rate = round(tokens / seconds, 1) if seconds else 0.0
    return {"new_completion_tokens": tokens, "seconds": round(seconds, 2), "tokens_per_second": rate}


def read_summary(out: Path) -> dict[str, Any] | None:
    """The summary of a finished run; None where there is none."""
    path = beside(out, "summary.json")
    found: dict[str, Any] | None = orjson.loads(path.read_bytes()) if path.exists() else None
    return found
