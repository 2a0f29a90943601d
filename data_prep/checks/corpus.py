"""ipt data decontaminate: documents that hold nothing of given evaluation tasks, before anything is made of them.

`ipt data check` sees the texts of chains only.  What is not synthesized goes on as raw text too, so the corpus is held
against the tasks first.  Writes OUT (documents), OUT.withheld.jsonl (the others) and OUT.summary.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.checks.decontamination import index_tasks
from data_prep.readers import atomic_file, beside, json_line, read_documents, write_json, write_jsonl
from data_prep.settings import CheckSettings


def decontaminate(settings: CheckSettings, documents_path: Path | str, out_path: Path | str) -> dict[str, Any]:
    """Parts the documents and returns what the summary says: documents = kept + withheld.

    Raises:
        UserError: no task file, or one that cannot be read; bad documents.
    """
    index = index_tasks(settings)
    counts: Counter[str] = Counter(dict.fromkeys(("documents", "kept", "withheld", "withheld_characters"), 0))
    with atomic_file(beside(out_path, "withheld.jsonl")) as withheld:

        def kept() -> Iterator[dict[str, Any]]:
            for document in read_documents(documents_path):
                counts["documents"] += 1
                if index.meets(document.text):
                    counts.update({"withheld": 1, "withheld_characters": len(document.text)})
                    withheld.write(json_line({**document.to_json(), "reason": "raw_text_overlap"}))
                else:
                    counts["kept"] += 1
                    yield document.to_json()

        write_jsonl(Path(out_path), kept())
    summary = {**counts, "tasks": index.counts}
    write_json(beside(out_path, "summary.json"), summary)
    return summary
