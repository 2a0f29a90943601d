"""Texts that the engine failed on, asked about again: `ipt data synthesize ... --retry-failed`.

They are put into new chains by themselves, in the order in which they stand in OUT.failed.jsonl.  The chains that come
of them are added to OUT; a text that fails again stays in OUT.failed.jsonl.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.readers import beside, read_jsonl, write_json, write_jsonl
from data_prep.records import AugmentedText
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.conversation import ENGINE_FAILED
from data_prep.synthesis.engines import Engine
from data_prep.synthesis.executors import Job, run_shards
from data_prep.synthesis.merge import COUNTS, FILES, merge, path_of, read_summary
from data_prep.synthesis.models import model_of
from data_prep.synthesis.progress import Meter, ProgressCallback
from data_prep.synthesis.work import begin_with_texts


def retry_failed(
    settings: SynthesizeSettings,
    model: Path | None,
    out: Path,
    progress: ProgressCallback | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Asks about the failed texts of `out` again; returns the summary, brought up to date.

    A kill leaves OUT as it was; the files change one after another, OUT first, once all answers are there.

    Raises:
        UserError: there is no such run, or none of its texts failed; the engine does not work at all.
    """
    if not beside(out, "summary.json").exists():
        raise UserError(out, "there is no finished run of that name", "run without --retry-failed first")
    failed = [AugmentedText.from_json(row) for row in read_jsonl(path_of(out, "failed"))]
    if not failed:
        raise UserError(path_of(out, "failed"), "no text failed", "there is nothing to do")
    root, again = beside(out, "retry.work"), beside(out, "retry")
    work = begin_with_texts(root, failed, settings)
    meter = Meter(len({(text.source, text.document_id) for text in failed}), progress)
    started = time.perf_counter()
    run_shards(Job(root, settings, model_of(settings, model)), work.missing(), meter, engine)
    spent = {"seconds": time.perf_counter() - started, "new_completion_tokens": meter.counts["new_completion_tokens"]}
    merge(work, again, {}, spent)
    summary = _add(out, again)
    for kind in FILES:
        path_of(again, kind).unlink()
    beside(again, "summary.json").unlink()
    work.remove()
    return summary


def _add(out: Path, again: Path) -> dict[str, Any]:
    """The rows of `again` behind those of `out`; texts that have pairs now are no longer left over."""
    left = _still_left(out, again)
    reasons = Counter(str(row["reason"]).partition(":")[0] for row in left)
    files: dict[str, Iterable[Mapping[str, Any]]] = {"leftover": left, "failed": read_jsonl(path_of(again, "failed"))}
    files |= {kind: _both(path_of(out, kind), path_of(again, kind)) for kind in ("chain", "rejected")}
    for kind, rows in files.items():
        write_jsonl(_new(out, kind), rows)
    before, new = read_summary(out), read_summary(again)
    assert before is not None and new is not None
    summary = {
        **before,
        "texts_with_pairs": before["texts"] - len(left),
        "chains": before["chains"] + new["chains"],
        **{name: before[name] + new[name] for name in COUNTS},
        **{name: new[name] for name in ("new_completion_tokens", "seconds", "tokens_per_second", "failed")},
        "leftover": dict(sorted(reasons.items())),
        "rejected": dict(sorted((Counter(before["rejected"]) + Counter(new["rejected"])).items())),
    }
    for kind in files:
        _new(out, kind).replace(path_of(out, kind))
    write_json(beside(out, "summary.json"), summary)
    return summary


def _new(out: Path, kind: str) -> Path:
    return beside(path_of(out, kind), f"new{out.suffix}")


def _still_left(out: Path, again: Path) -> list[Mapping[str, Any]]:
    """Texts without pairs: those of before that did not fail, and those that were asked about again in vain."""
    paired = {_place(text) for row in read_jsonl(path_of(again, "chain")) for text in row["texts"]}
    before = [row for row in read_jsonl(path_of(out, "leftover")) if _place(row) not in paired]
    kept = [row for row in before if not str(row["reason"]).startswith(ENGINE_FAILED)]
    named = {_place(row) for row in kept}
    return kept + [row for row in read_jsonl(path_of(again, "leftover")) if _place(row) not in named]


def _place(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row.get("source", ""), row["document_id"], row["start"]


def _both(first: Path, second: Path) -> Iterator[Mapping[str, Any]]:
    yield from read_jsonl(first)
    yield from read_jsonl(second)
