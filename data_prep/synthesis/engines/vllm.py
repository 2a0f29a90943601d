"""The engine of a GPU node: vLLM in this process, asynchronous, prefix caching on.

vLLM batches by itself, so each request goes to it as soon as its prompt is known.  A chain's next prompt extends the
last one and its answer, and the prefix cache serves what they share.  Requests that go on a chain go before those that
begin one (`scheduling_policy` is "priority"): else, with more chains under way than the cache holds, what they share
would be gone when their turn comes.  Nobody waits for a single answer, so vLLM's defaults are those of its `LLM` class:
on an H100 1,024 sequences at once, where an engine of no stated use gets 128.  A completion ends at EOS or at any other
special id, as with the engine of transformers.  vLLM pins a torch of its own: give it its own environment.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from data_prep.errors import UserError, nearest
from data_prep.synthesis.engines.contract import Completion, Request

# vLLM takes seeds of 64 bits with a sign.
LARGEST_SEED = 2**63 - 1
OF_CHAINS: Final = {"enable_prefix_caching": True, "scheduling_policy": "priority"}
"""What makes chains quick; `engine_args` may say otherwise."""
OURS = ("model", "max_model_len", "tensor_parallel_size", "dtype", "quantization")
SAME_ANSWERS = frozenset(
    {"gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override", "block_size", "swap_space"}
    | {"cpu_offload_gb", "max_num_seqs", "max_num_batched_tokens", "max_num_partial_prefills", "scheduling_policy"}
    | {"enable_prefix_caching", "enable_chunked_prefill", "async_scheduling", "enforce_eager"}
    | {"pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel", "distributed_executor_backend"}
    | {"disable_custom_all_reduce", "max_parallel_loading_workers", "download_dir", "disable_log_stats"}
    | {"enable_log_requests", "disable_log_requests"}
)
"""Engine arguments of memory, order, places and logs: what is left to do may be done with others."""


class VllmEngine:
    """Completions of a model that vLLM runs.

    Args:
        model: a Hugging Face directory, or a name that vLLM can find.
        temperature: 0 is greedy; else each request is sampled from its own seed.
        max_model_len: prompt and completion together [tokens].
        dtype, quantization: as vLLM names them.
        engine_args: further fields of vLLM's AsyncEngineArgs, passed through; an identity holds all but SAME_ANSWERS.
        concurrency: requests under way at once; how many of them vLLM computes together is its `max_num_seqs`.

    Raises:
        UserError: no vLLM here, an engine argument that it does not have, or it did not start (in its own words).
    """

    batch_size = 1

    def __init__(
        self,
        model: Path | str,
        *,
        max_new_tokens: int,
        temperature: float,
        max_model_len: int,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        quantization: str | None = None,
        engine_args: Mapping[str, Any] | None = None,
        concurrency: int = 2000,
    ) -> None:
        self.concurrency = concurrency
        self.model, self.max_new_tokens, self.temperature = str(model), max_new_tokens, temperature
        self._vllm = _import_vllm()
        self._vary = {"max_model_len": max_model_len, "dtype": dtype, "quantization": quantization}
        self.engine_args = dict(engine_args or {})
        check_engine_args(self.engine_args, [field.name for field in fields(self._vllm.AsyncEngineArgs)])
        given = {**self._vary, "tensor_parallel_size": tensor_parallel_size, **OF_CHAINS}
        self.engine = self._start({**given, **self.engine_args})
        self._stop_ids = sorted(special_ids(self.engine.get_tokenizer()))
        self._numbers = itertools.count()

    @property
    def identity(self) -> Mapping[str, Any]:
        """Not how many GPUs share the model: with other sums in another order it is the same model."""
        return {
            "engine": "vllm",
            "model": _fingerprint(self.model),
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            **self._vary,
            "engine_args": answering(self.engine_args),
        }

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion a request, in their order.

        Raises:
            Exception: vLLM's own, in its own words: a prompt that does not fit, a dead engine, out of memory.
        """
        return list(await asyncio.gather(*map(self._complete, requests)))

    async def close(self) -> None:
        """Ends vLLM's processes and gives the memory back."""
        self.engine.shutdown()

    def _start(self, values: Mapping[str, Any]) -> Any:
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            arguments = self._vllm.AsyncEngineArgs(model=self.model, **values)
            return AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
        except Exception as error:  # it raises many kinds; its words are kept
            raise UserError(self.model, f"vLLM did not start: {error}", "see its log above") from error

    async def _complete(self, request: Request) -> Completion:
        prompt = self._vllm.TokensPrompt(prompt_token_ids=list(request.prompt))
        number = f"{next(self._numbers)}"
        last = None
        sampling = self._sampling(request.seed)
        async for output in self.engine.generate(prompt, sampling, number, priority=-request.follows):
            last = output
        if last is None:
            raise RuntimeError("vLLM ended a request without an answer")
        answer = last.outputs[0]
        if answer.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended a request for the reason {answer.finish_reason!r}, not 'stop' or 'length'")
        return Completion(answer.text, answer.finish_reason, len(request.prompt), len(answer.token_ids))

    def _sampling(self, seed: int) -> Any:
        """Every setting named, so that a model's own generation defaults change nothing."""
        from vllm.sampling_params import RequestOutputKind

        return self._vllm.SamplingParams(
            max_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=1.0,
            top_k=0,
            repetition_penalty=1.0,
            seed=seed & LARGEST_SEED if self.temperature > 0 else None,
            stop_token_ids=self._stop_ids,
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def check_engine_args(given: Mapping[str, Any], legal: Sequence[str]) -> None:
    """Refuses arguments that vLLM does not have, and those that have a parameter of their own.

    Raises:
        UserError: with the nearest legal name.
    """
    for name in given:
        if name in OURS:
            raise UserError("engine_args", f"'{name}' is a setting of its own", "give it there")
        if name not in legal:
            raise UserError("engine_args", f"vLLM has no engine argument '{name}'", nearest(name, legal))


def answering(given: Mapping[str, Any]) -> dict[str, Any]:
    """The engine arguments that may change what the model answers."""
    return {name: value for name, value in given.items() if name not in SAME_ANSWERS}


def special_ids(tokenizer: Any) -> set[int]:
    """EOS and every other special id of a tokenizer."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def _fingerprint(model: str) -> str:
    """A hash of a model directory's files; the name of a model that is none."""
    from data_prep.synthesis.engines.transformers import fingerprint

    return fingerprint(Path(model)) if Path(model).is_dir() else model


def _import_vllm() -> Any:
    """Imported when an engine is made: it takes seconds."""
    try:
        import vllm
    except ImportError as error:
        mend = "pip install instruction-pretraining[synth], in an environment of its own"
        raise UserError("engine vllm", f"the package 'vllm' is missing ({error})", mend) from error
    return vllm
