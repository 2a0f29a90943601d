"""ipt data synthesize: a synthesizer model reads documents and writes pairs about them.

    inputs --work.begin--> shards of documents --worker--> results --merge--> OUT and the files beside it

Writes OUT (chains), OUT.leftover.jsonl (texts without pairs, with the reason), OUT.failed.jsonl (texts that the engine
failed on, for `--retry-failed`), OUT.rejected.jsonl (every fragment of a completion that is no pair), OUT.dropped.jsonl
(every row of the input that is no document), OUT.documents.jsonl.zst (every row that is one, as `ipt data render` reads
it), and OUT.summary.json.  OUT.work is there while a run is on its way, and a killed run goes on from it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.intake.inputs import check_place
from data_prep.locks import one_at_a_time
from data_prep.readers import beside, sweep_partials
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.engines import Engine
from data_prep.synthesis.executors import Job, make_prompter, run_shards
from data_prep.synthesis.identity import differing, identity_of
from data_prep.synthesis.merge import merge, path_of, read_summary
from data_prep.synthesis.models import model_of, named_at_servers
from data_prep.synthesis.progress import Meter, ProgressCallback, SynthesisProgress, progress_bar
from data_prep.synthesis.retry import retry_failed, settle
from data_prep.synthesis.work import Work, begin, is_under_way, sweep, work_folder

__all__ = ["SynthesisProgress", "progress_bar", "retry_failed", "synthesize"]


def synthesize(
    settings: SynthesizeSettings,
    inputs: Sequence[Path | str] | Path | str,
    model: Path | str | None,
    out_path: Path | str,
    progress: ProgressCallback | None = None,
    engine: Engine | None = None,
    shard_index: int = 0,
    num_shards: int = 1,
    replace: bool = False,
) -> dict[str, Any] | None:
    """Synthesizes the documents into chains and returns what the summary says.

    rows read = documents + documents_left_raw (not among the `settings.documents` chosen) + the sum of dropped;
    texts = texts_with_pairs + the sum of leftover.  Token counts are of all texts; seconds, new_completion_tokens and
    tokens_per_second are of this run, a resumed one does not count what it found done.  A run that is done already is
    left as it is.

    Args:
        model: a Hugging Face model directory; its tokenizer encodes the prompts.  None for the engine `rules`.
        progress: called now and then; `progress_bar()` gives one.
        engine: generates in place of the one that `settings.engine` names, in this process.
        shard_index, num_shards: this process does each `num_shards`-th shard alone (a Slurm array's task); the one
            that finds all shards done writes the files, the others return None.
        replace: a finished `out_path` that was made of something else is made anew, not refused.

    Raises:
        UserError: bad inputs, model or settings; an engine that does not work at all; a run, finished or on its way,
            of other inputs, settings, model or rules.
    """
    out = Path(out_path)
    paths = [inputs] if isinstance(inputs, Path | str) else list(inputs)
    check_place(out, paths)
    sweep_partials(out)
    found, settings = model_of(settings, model, engine), named_at_servers(settings, model)
    prompter = make_prompter(settings, found)
    identity = identity_of(paths, settings, prompter.wire.name, found, engine)
    done = _done(out, identity, replace)
    if done is not None:
        return done
    work = begin(work_folder(out), paths, settings, identity)
    if not work.plan["documents"]:
        mend = f"give a corpus; which rows, and why: {work.dropped}"
        raise UserError(paths[0], f"there are no documents in it ({_dropped(work)})", mend)
    missing = work.missing(shard_index, num_shards)
    meter = Meter(round(_chosen(work, settings) * len(missing) / work.shards), progress)
    job = Job(work.root, settings, found)
    started = time.perf_counter()
    try:
        run_shards(job, missing, meter, engine, prompter)
    except UserError:
        if work.root.exists():  # else another process has found all shards done
            raise
    spent = {"seconds": time.perf_counter() - started, "new_completion_tokens": meter.counts["new_completion_tokens"]}
    return finish(work, out, identity, spent)


def finish(work: Work, out: Path, identity: dict[str, Any], spent: dict[str, float]) -> dict[str, Any] | None:
    """Writes the files of the run if every shard is done, and removes its folder; else None.

    Where the file system has no locks several processes may come to this at once: each writes the same bytes under
    names of its own and renames them, and one that the folder is taken away from has nothing left to do.
    """
    with one_at_a_time(beside(out, "merge.lock")):
        if not work.missing():
            try:
                summary = merge(work, out, identity, spent)
            except UserError:
                if work.root.exists():
                    raise
            else:
                work.remove()
                return summary
        return None if work.root.exists() else read_summary(out)


def _done(out: Path, identity: dict[str, Any], replace: bool) -> dict[str, Any] | None:
    """The summary of a run that made `out` of just this, if there was one; a run that is on its way is not done.

    Raises:
        UserError: it was made of something else, and is not to be replaced.
    """
    settle(out)
    summary = read_summary(out)
    if summary is None or not path_of(out, "chain").exists() or is_under_way(work_folder(out), identity):
        return None
    unlike = differing(summary.get("made_of", {}), identity)
    if unlike and not replace:
        problem = f"is finished, and was made with another {', '.join(unlike)}"
        raise UserError(out, problem, "name another file, or remove this one to make it anew")
    if unlike:
        return None
    sweep(work_folder(out))
    return summary


def _chosen(work: Work, settings: SynthesizeSettings) -> int:
    found = int(work.plan["documents"])
    return min(found, settings.documents or found)


def _dropped(work: Work) -> str:
    reasons: Counter[str] = Counter(work.plan["dropped"])
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "no rows"
