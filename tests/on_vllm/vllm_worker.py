"""What the vLLM engine does with a real model on this machine, as JSON; run by test_vllm.py in vLLM's environment.

python vllm_worker.py MODEL PROMPTS.json FOUND.json
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from data_prep.synthesis.engines.contract import Request
from data_prep.synthesis.engines.vllm import VllmEngine

TOKENS = 16
SIDE_BY_SIDE = 40
QUEUED = 48
AT_ONCE = 16


def started(model: str, **values: Any) -> VllmEngine:
    given = {"max_new_tokens": TOKENS, "temperature": 0.0, "max_model_len": 512, "dtype": "float32"}
    arguments = {"enforce_eager": True, "max_num_seqs": AT_ONCE, **values.pop("engine_args", {})}
    return VllmEngine(model, **{**given, **values}, engine_args=arguments)


def refused(model: str, **values: Any) -> str:
    try:
        started(model, **values)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def arriving(model: str) -> dict[str, Any]:
    """What vLLM would be started with, where a model is shared by four GPUs: it is not started."""
    from vllm.v1.engine.async_llm import AsyncLLM

    arrived: dict[str, Any] = {}

    def instead(arguments: Any, usage_context: Any) -> None:
        names = ("tensor_parallel_size", "quantization", "kv_cache_dtype", "enable_prefix_caching", "scheduling_policy")
        arrived.update({name: getattr(arguments, name) for name in names}, usage_context=usage_context.value)
        raise RuntimeError("not started")

    with mock.patch.object(AsyncLLM, "from_engine_args", instead):
        arguments = {"kv_cache_dtype": "fp8", "scheduling_policy": "fcfs"}
        arrived["words"] = refused(model, tensor_parallel_size=4, quantization="fp8", engine_args=arguments)
    return arrived


async def asked(engine: VllmEngine, prompts: Sequence[Sequence[int]], seed: int = 7) -> list[dict[str, Any]]:
    """Completions of prompts that are under way together, each a call of its own."""
    calls = (engine.generate([Request(prompt, "", seed)]) for prompt in prompts)
    return [asdict(done) for (done,) in await asyncio.gather(*calls)]


def counters() -> dict[str, float]:
    """vLLM's own counts of prompt tokens that it looked up in the prefix cache, and found there."""
    from vllm.v1.metrics.reader import Counter, get_metrics_snapshot

    found = {metric.name: metric.value for metric in get_metrics_snapshot() if isinstance(metric, Counter)}
    return {name: found[f"vllm:prefix_cache_{name}"] for name in ("queries", "hits")}


async def chained(engine: VllmEngine, prompt: list[int], more: list[int]) -> dict[str, Any]:
    """A prompt, then one that goes on from it: what the second found in the cache."""
    (first,) = await asked(engine, [prompt])
    before = counters()
    (second,) = await asked(engine, [[*prompt, *more]])
    after = counters()
    return {"first": first, "second": second, "hits": after["hits"] - before["hits"], "shared": len(prompt)}


def batched_tokens(engine: VllmEngine) -> tuple[int, int]:
    """Tokens that a step takes at most, and vLLM's own default of its class for work off line."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    tokens, _ = EngineArgs(model=engine.model).get_batch_defaults(1)
    return engine.engine.vllm_config.scheduler_config.max_num_batched_tokens, tokens[UsageContext.LLM_CLASS]


async def ahead(engine: VllmEngine, first: Sequence[int], follows: int) -> int:
    """How many of QUEUED requests that begin, all sent before one that follows so many, were done before it."""
    done: list[Request] = []

    async def one(request: Request) -> None:
        await engine.generate([request])
        done.append(request)

    begin = [Request([*first, 100 + place], "", 7) for place in range(QUEUED)]
    late = Request([*first, 11], "", 7, follows=follows)
    await asyncio.gather(*map(one, [*begin, late]))
    return done.index(late)


async def worded(engine: VllmEngine, prompt: list[int]) -> str:
    try:
        await asked(engine, [prompt])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


async def all_of(model: str, prompts: list[list[int]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "unknown": refused(model, engine_args={"max_num_sequences": 3}),
        "ours": refused(model, engine_args={"dtype": "half"}),
        "no_model": refused("/no/such/model"),
        "arriving": arriving(model),
    }
    engine = started(model)
    found["identity"] = dict(engine.identity)
    found["batched_tokens"] = batched_tokens(engine)
    found["greedy"] = await asked(engine, prompts)
    found["many"] = await asked(engine, [prompts[place % len(prompts)] for place in range(SIDE_BY_SIDE)])
    found["chain"] = await chained(engine, list(range(1000, 1160)), [11, 12, 13])
    found["ahead"] = {follows: await ahead(engine, prompts[4], follows) for follows in (0, 2)}
    found["too_long"] = await worded(engine, [5] * 600)
    found["after"] = await asked(engine, prompts[:1])
    engine.temperature = 1.0
    found["sampled"] = [await asked(engine, prompts, seed) for seed in (1, 1, 2)]
    for child in multiprocessing.active_children():
        if child.pid:
            os.kill(child.pid, signal.SIGKILL)
    found["dead"] = await worded(engine, prompts[0])
    await engine.close()
    return found


if __name__ == "__main__":
    model, given, out = sys.argv[1:]
    found = asyncio.run(all_of(model, json.loads(Path(given).read_text(encoding="utf-8"))))
    Path(out).write_text(json.dumps(found), encoding="utf-8")
