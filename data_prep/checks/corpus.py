"""ipt data decontaminate: documents that hold nothing of given evaluation tasks, before anything is made of them.

`ipt data check` sees the texts of chains only.  What is not synthesized goes on as raw text too, so the corpus is held
against the tasks first.  Writes OUT (documents), OUT.withheld.jsonl (the others), OUT.dropped.jsonl (rows that are no
documents) and OUT.summary.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.checks.decontamination import index_tasks
from data_prep.intake import Drop, read
from data_prep.intake.inputs import check_place
from data_prep.readers import atomic_file, beside, json_line, write_json, write_jsonl
from data_prep.settings import DecontaminateSettings


def decontaminate(
    settings: DecontaminateSettings, inputs: Sequence[Path | str], out_path: Path | str
) -> dict[str, Any]:
    """Parts the documents and returns what the summary says: rows = documents + the sum of dropped, documents = kept +
    withheld.

    Args:
        inputs: as of `ipt data synthesize`, which reads OUT next.

    Raises:
        UserError: no task file, or one that cannot be read; an input that is missing or of a kind that is not read, or
            in which OUT stands.
    """
    check_place(Path(out_path), inputs)
    index = index_tasks(settings)
    counts: Counter[str] = Counter(dict.fromkeys(("rows", "documents", "kept", "withheld", "withheld_characters"), 0))
    reasons: Counter[str] = Counter()
    with (
        atomic_file(beside(out_path, "withheld.jsonl")) as withheld,
        atomic_file(beside(out_path, "dropped.jsonl")) as dropped,
    ):

        def kept() -> Iterator[dict[str, Any]]:
            for item in read(inputs, settings):
                counts["rows"] += 1
                if isinstance(item, Drop):
                    reasons[item.reason] += 1
                    dropped.write(json_line(asdict(item)))
                    continue
                counts["documents"] += 1
                if index.meets(item.text):
                    counts.update({"withheld": 1, "withheld_characters": len(item.text)})
                    withheld.write(json_line({**item.to_json(), "reason": "raw_text_overlap"}))
                else:
                    counts["kept"] += 1
                    yield item.to_json()

        write_jsonl(Path(out_path), kept())
    summary = {**counts, "dropped": dict(sorted(reasons.items())), "tasks": index.counts}
    write_json(beside(out_path, "summary.json"), summary)
    return summary
