#!/usr/bin/env python3
"""vLLM's part of synthesis.py, run by it in an environment that has vLLM (tools/vllm_cpu.sh).

    python benchmarks/synthesis_vllm.py CASE.json      # each turn is a line `turn {...}`

The engine starts once.  A turn is three arms over the same documents, its prefix cache emptied before each:

- `ours`: a worker over a work folder, chain by chain, as `ipt data synthesize` runs it: documents are cut, journals
  and results written;
- `bare`: the prompts of `ours`, in the order in which their answers came, given to the engine at once, all
  of the same priority;
- `rounds`: a worker whose engine takes all prompts of a round together, and gives their answers when all are made.

Seconds are of the clock; processor seconds of this process and of those that vLLM has started.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from synthesis_engines import ALL, Watched

from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.engines.vllm import VllmEngine
from data_prep.synthesis.executors import make_prompter
from data_prep.synthesis.work import begin
from data_prep.synthesis.worker import Worker

ORDERS = (("ours", "bare", "rounds"), ("rounds", "ours", "bare"), ("bare", "rounds", "ours"))


def main() -> None:
    case = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    settings, model = SynthesizeSettings(**case["settings"]), Path(case["model"])
    engine = VllmEngine(
        model,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        max_model_len=settings.max_model_len,
        dtype=settings.dtype,
        concurrency=settings.concurrency,
        engine_args=settings.engine_args,
    )
    asyncio.run(all_turns(engine, settings, model, case))


async def all_turns(engine: VllmEngine, settings: SynthesizeSettings, model: Path, case: dict[str, Any]) -> None:
    """A run over a few documents, that is not counted, one for the prompts of the bare engine, then the turns."""
    prompter = make_prompter(settings, model)
    corpus = Path(case["corpus"])

    async def arm(name: str, watched: Watched, settings: SynthesizeSettings = settings) -> None:
        with TemporaryDirectory(prefix="ipt-benchmark-") as folder:
            work = begin(Path(folder) / "work", [corpus], settings, prompter.wire.name)
            waiting = iter(work.missing())
            await Worker(work, settings, watched, prompter).run(lambda: next(waiting, None))

    def watched(batch_size: int = 1) -> Watched:
        return Watched(engine, settings.concurrency, batch_size, one_pair=case["one_pair"])

    await arm("warm-up", watched(), settings.model_copy(update={"documents": case["warm_up"]}))
    recorded = watched()
    await arm("ours", recorded)
    alone = [replace(request, follows=0) for request in recorded.requests]
    for number in range(case["turns"]):
        turn: dict[str, Any] = {}
        for name in ORDERS[number % len(ORDERS)]:
            await engine.engine.reset_prefix_cache()
            mine = watched(ALL if name == "rounds" else 1)
            what = mine.generate(alone) if name == "bare" else arm(name, mine)
            turn[name] = {**await timed(what), **counts(mine)}
            print(number, name, turn[name], file=sys.stderr, flush=True)
        print("turn", json.dumps({"load": round(os.getloadavg()[0], 1), "runs": turn}), flush=True)
    await engine.close()


def counts(watched: Watched) -> dict[str, int]:
    prompt_tokens = sum(len(request.prompt) for request in watched.requests)
    return {
        "requests": len(watched.requests),
        "prompt_tokens": prompt_tokens,
        "completion_tokens": watched.completion_tokens,
        "most_in_flight": watched.most_in_flight,
    }


async def timed(what: Awaitable[Any]) -> dict[str, float]:
    """Seconds, processor seconds, and the tokens of prompts that were found in the prefix cache."""
    began, processor, found = time.perf_counter(), processor_seconds(), cache_hits()
    await what
    return {
        "seconds": round(time.perf_counter() - began, 3),
        "processor_seconds": round(processor_seconds() - processor, 3),
        "cached_tokens": cache_hits() - found,
    }


def processor_seconds() -> float:
    """Of this process and of all that it started."""
    import psutil

    own = psutil.Process()
    times = [each.cpu_times() for each in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def cache_hits() -> int:
    from vllm.v1.metrics.reader import Counter, get_metrics_snapshot

    counters = (metric for metric in get_metrics_snapshot() if isinstance(metric, Counter))
    return int(sum(metric.value for metric in counters if metric.name == "vllm:prefix_cache_hits"))


if __name__ == "__main__":
    main()
