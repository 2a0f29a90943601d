"""What a run will take, told before it runs: `ipt data synthesize ... --plan`.

A few documents, drawn as the run draws them, go through the engine for real.  Tokens and bytes a document are carried
over to all documents; the interval is of the mean of the sample, by a bootstrap over its documents.  Time is carried
over from the rate that the sample ran at.  A sample leaves a large engine half idle, so that rate is a lower bound:
`plan_rate` takes a rate that was measured elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import orjson

from data_prep.draws import draw
from data_prep.errors import UserError
from data_prep.records import AugmentedText, Document
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.chains import plan_chains
from data_prep.synthesis.conversation import Conversation
from data_prep.synthesis.engines import Completion, Engine, make_engine
from data_prep.synthesis.executors import make_prompter
from data_prep.synthesis.identity import identity_of
from data_prep.synthesis.journal import Journal
from data_prep.synthesis.models import model_of, named_at_servers
from data_prep.synthesis.prompts import Prompter
from data_prep.synthesis.schedule import Health, Schedule, run_chains
from data_prep.synthesis.shard import cut
from data_prep.synthesis.work import AXIS, Work, begin, work_folder

FIGURES: Final = ("texts", "prompt_tokens", "completion_tokens", "pairs", "bytes")


@dataclass(frozen=True, slots=True)
class Estimate:
    """`figures`: name -> (expected, low, high), the last two with 95 %; `hours` of one engine, by `rate` tokens/s.

    `bytes` is the JSON of texts with their pairs.  `gpu_hours` is None where the GPUs of an engine are not told by the
    settings: a server has its own, `transformers` runs on one or on a CPU, `rules` on none.
    """

    documents: int
    rows: int
    dropped: dict[str, int]
    sampled: int
    figures: dict[str, tuple[float, float, float]]
    rate: float
    hours: float
    gpu_hours: float | None


def estimate(
    settings: SynthesizeSettings,
    inputs: Sequence[Path | str],
    model: Path | None,
    out: Path,
    *,
    sample: int = 64,
    rate: float | None = None,
    engine: Engine | None = None,
) -> Estimate:
    """Reads the inputs (the run need not do it again) and measures `sample` documents.

    Args:
        rate: completion tokens that an engine makes in a second, where it is known better.

    Raises:
        UserError: no documents, no synthesizer, or the engine fails on all of the sample.
    """
    model, settings = model_of(settings, model, engine), named_at_servers(settings, model)
    prompter = make_prompter(settings, model)
    identity = identity_of(inputs, settings, prompter.wire.name, model, engine)
    work = begin(work_folder(out), inputs, settings, identity)
    documents = _sample(work, settings, sample)
    if not documents:
        raise UserError(inputs[0], "there are no documents in it", "give a corpus")
    runner = engine or make_engine(settings, model, prompter.wire)
    measured, seconds = asyncio.run(_measure(documents, settings, prompter, runner, work))
    total = min(int(work.plan["documents"]), settings.documents or int(work.plan["documents"]))
    figures = {name: _scaled([row[name] for row in measured], total) for name in FIGURES}
    tokens = sum(row["completion_tokens"] for row in measured)
    found = rate or tokens / seconds
    hours = figures["completion_tokens"][0] / found / 3600 if found else 0.0
    gpus = hours * settings.tensor_parallel_size if settings.engine == "vllm" else None
    plan = work.plan
    return Estimate(total, plan["rows"], plan["dropped"], len(documents), figures, found, hours, gpus)


def _sample(work: Work, settings: SynthesizeSettings, count: int) -> list[Document]:
    """The documents with the smallest draws."""
    kept: list[tuple[int, str, Document]] = []
    for shard in range(work.shards):
        found = (item for item in work.texts_of(shard) if isinstance(item, Document))
        kept += [(draw(settings.seed, item.id, AXIS), item.id, item) for item in found]
        kept = sorted(kept, key=lambda each: each[:2])[:count]
    return [document for *_, document in kept]


async def _measure(
    documents: Sequence[Document], settings: SynthesizeSettings, prompter: Prompter, engine: Engine, work: Work
) -> tuple[list[Counter[str]], float]:
    """FIGURES of each document, and the seconds they all took; what was generated is not kept."""
    texts: list[AugmentedText] = [text for document in documents for text in cut(document, prompter)]
    by_source = settings.pairing == "source"
    chains = plan_chains(texts, settings.rounds, by_source=by_source, samples=settings.samples)
    conversations = [Conversation(chain) for chain in chains]
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def told(conversation: Conversation, completion: Completion | None, _: bool) -> None:
        text = conversation.texts[-1]
        mine = counts[text.source, text.document_id]
        is_first = text.sample == 0  # a text is one whatever its samples, and is written once if they have no pairs
        size = len(orjson.dumps(text.to_json())) if is_first or text.pairs else 0
        mine.update(texts=is_first, pairs=len(text.pairs), bytes=size)
        if completion is not None:
            mine.update(prompt_tokens=completion.prompt_tokens, completion_tokens=completion.completion_tokens)

    health = Health()
    path = work.root / "sample.jsonl"
    path.unlink(missing_ok=True)  # of a plan that was killed: what is found in it takes no time
    try:
        with Journal(path, engine.identity) as journal:
            started = time.perf_counter()
            slots = asyncio.Semaphore(engine.concurrency)
            await run_chains(Schedule(engine, prompter, health, told), conversations, journal, slots)
            seconds = time.perf_counter() - started
    finally:
        path.unlink(missing_ok=True)
        await engine.close()
    if not health.answered:
        raise health.verdict()
    return [counts[document.source, document.id] for document in documents], seconds


def _scaled(values: Sequence[float], total: int, draws: int = 2000) -> tuple[float, float, float]:
    """The sum over `total` documents that a sample's values tell of, and its 95 % interval."""
    found = np.asarray(values, float)
    means = np.random.default_rng(0).choice(found, (draws, len(found))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(found.mean() * total), float(low * total), float(high * total)
