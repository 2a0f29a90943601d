"""Texts that the engine failed on, asked about again: `ipt data synthesize ... --retry-failed`.

They are put into new chains by themselves, in the order in which they stand in OUT.failed.jsonl.  The chains that come
of them are added to OUT; a text that fails again stays in OUT.failed.jsonl.  What is asked, and of whom, is as in the
run: another model, prompt or sampling is refused; another batch size, address or time-out may be the mend.

A kill leaves OUT as it was until all new files are there, OUT.retry.done.json last; from then on whoever comes next
puts them in place.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import xxhash

from data_prep.errors import UserError
from data_prep.locks import one_at_a_time
from data_prep.readers import beside, read_jsonl, sweep_partials, write_json, write_jsonl
from data_prep.records import AugmentedText
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.conversation import ENGINE_FAILED
from data_prep.synthesis.engines import Engine
from data_prep.synthesis.executors import Job, make_prompter, run_shards
from data_prep.synthesis.identity import differing, identity_of, of_retry
from data_prep.synthesis.merge import COUNTS, FILES, merge, path_of, read_summary
from data_prep.synthesis.models import model_of, named_at_servers
from data_prep.synthesis.progress import Meter, ProgressCallback
from data_prep.synthesis.work import begin_with_texts, is_under_way, work_folder


def retry_failed(
    settings: SynthesizeSettings,
    model: Path | None,
    out: Path,
    progress: ProgressCallback | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Asks about the failed texts of `out` again; returns the summary, brought up to date.

    One process at a time does it; a killed one is gone on with.

    Raises:
        UserError: there is no such run, it was made with other settings or another engine, or none of its texts failed;
            no synthesizer is named, or it does not work at all.
    """
    sweep_partials(out)
    if settle(out):
        return _summary(out)
    with one_at_a_time(beside(out, "retry.lock")):
        _ask(named_at_servers(settings, model), model_of(settings, model, engine), out, progress, engine)
    settle(out)
    return _summary(out)


def settle(out: Path) -> bool:
    """Puts the files of a retry in place if they are all there; whether they were."""
    done = beside(out, "retry.done.json")
    if not done.exists():
        return False
    with one_at_a_time(beside(out, "retry.lock")):
        if not done.exists():  # another process was here before
            return True
        for kind in FILES:
            if _new(out, kind).exists():
                _new(out, kind).replace(path_of(out, kind))
        again = beside(out, "retry")
        for path in (*(path_of(again, kind) for kind in FILES), beside(again, "summary.json")):
            path.unlink(missing_ok=True)
        shutil.rmtree(beside(out, "retry.work"), ignore_errors=True)
        done.replace(beside(out, "summary.json"))
    return True


def _ask(
    settings: SynthesizeSettings,
    model: Path | None,
    out: Path,
    progress: ProgressCallback | None,
    engine: Engine | None,
) -> None:
    if not beside(out, "summary.json").exists():
        raise UserError(out, "there is no finished run of that name", "run without --retry-failed first")
    if is_under_way(work_folder(out)):
        raise UserError(work_folder(out), "a run is on its way there", "finish it first, without --retry-failed")
    failed = [AugmentedText.from_json(row) for row in read_jsonl(path_of(out, "failed"))]
    if not failed:
        raise UserError(path_of(out, "failed"), "no text failed", "there is nothing to do")
    prompter = make_prompter(settings, model)
    texts = xxhash.xxh3_128_hexdigest(b"".join(orjson.dumps(text.to_json()) for text in failed))
    identity = of_retry(identity_of([], settings, prompter.wire.name, model, engine))
    if unlike := differing(of_retry(_summary(out).get("made_of", {})), identity):
        mend = f"give what `made_of` in {beside(out, 'summary.json').name} tells, or make another run"
        raise UserError(out, f"was made with another {', '.join(unlike)}", mend)
    identity |= {"texts": texts, "shard_documents": settings.shard_documents}
    work = begin_with_texts(beside(out, "retry.work"), failed, settings, identity)
    meter = Meter(len({(text.source, text.document_id) for text in failed}), progress)
    started = time.perf_counter()
    run_shards(Job(work.root, settings, model), work.missing(), meter, engine, prompter)
    spent = {"seconds": time.perf_counter() - started, "new_completion_tokens": meter.counts["new_completion_tokens"]}
    merge(work, beside(out, "retry"), {}, spent)
    _add(out, beside(out, "retry"))


def _summary(out: Path) -> dict[str, Any]:
    found = read_summary(out)
    assert found is not None  # a retry is of a run that is done
    return found


def _add(out: Path, again: Path) -> None:
    """The rows of `again` behind those of `out`, in new files; texts that have pairs now are no longer left over."""
    reasons: Counter[str] = Counter()
    write_jsonl(_new(out, "leftover"), _still_left(out, again, reasons))
    write_jsonl(_new(out, "failed"), read_jsonl(path_of(again, "failed")))
    for kind in ("chain", "rejected"):
        write_jsonl(_new(out, kind), _both(path_of(out, kind), path_of(again, kind)))
    before, new = _summary(out), _summary(again)
    summary = {
        **before,
        "texts_with_pairs": before["texts"] - reasons.total(),
        "chains": before["chains"] + new["chains"],
        **{name: before[name] + new[name] for name in COUNTS},
        **{name: new[name] for name in ("new_completion_tokens", "seconds", "tokens_per_second", "failed")},
        "leftover": dict(sorted(reasons.items())),
        "rejected": dict(sorted((Counter(before["rejected"]) + Counter(new["rejected"])).items())),
    }
    write_json(beside(out, "retry.done.json"), summary)


def _new(out: Path, kind: str) -> Path:
    return beside(path_of(out, kind), f"new{out.suffix}")


def _still_left(out: Path, again: Path, reasons: Counter[str]) -> Iterator[Mapping[str, Any]]:
    """Texts without pairs in any sample, counted by reason: those left before, without those that have pairs now.

    A text that only failed has the reason of the retry.
    """
    paired = {_place(text) for row in read_jsonl(path_of(again, "chain")) for text in row["texts"]}
    told = {_place(row): row for row in read_jsonl(path_of(again, "leftover"))}
    for before in read_jsonl(path_of(out, "leftover")):
        if _place(before) in paired:
            continue
        has_failed = str(before["reason"]).startswith(ENGINE_FAILED)
        row = told.get(_place(before), before) if has_failed else before
        reasons[str(row["reason"]).partition(":")[0]] += 1
        yield row


def _place(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row.get("source", ""), row["document_id"], row["start"]


def _both(first: Path, second: Path) -> Iterator[Mapping[str, Any]]:
    yield from read_jsonl(first)
    yield from read_jsonl(second)
