"""What runs the synthesizer: requests in, completions out; one file an engine, made by name from the settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.engines.contract import Completion, Engine, FinishReason, Request
from data_prep.synthesis.wire import Wire

__all__ = ["Completion", "Engine", "FinishReason", "Request", "flat", "make_engine", "state_of"]


def make_engine(settings: SynthesizeSettings, model: Path | None, wire: Wire) -> Engine:
    """The engine that `settings.engine` names, over the model at `model`.

    Raises:
        UserError: what it needs is not given or not installed.
    """
    if settings.engine == "rules":
        from data_prep.synthesis.engines.rules import RulesEngine

        return RulesEngine(count=lambda text: len(wire.encode(text)))
    if model is None:
        raise UserError("--model", "no synthesizer is named", "give its Hugging Face directory")
    if settings.engine == "server":
        return _server(settings, model)
    if settings.engine == "vllm":
        return _vllm(settings, model)
    from data_prep.synthesis.engines.transformers import TransformersEngine

    return TransformersEngine(model, settings)


def state_of(settings: SynthesizeSettings, model: Path | None) -> dict[str, Any]:
    """What the answers of that engine depend on beyond the other settings and the model's files; without making it.

    Not how many GPUs share a model, nor a library's version: with other sums in another order it is the same model.
    """
    if settings.engine == "rules":
        from data_prep.synthesis.engines.rules import RulesEngine

        return flat(RulesEngine())
    if settings.engine == "server":
        from data_prep.synthesis.engines.server import full_body

        return {"server_model": _name_at_server(settings, model), "server_body": full_body(settings.server_body)}
    if settings.engine == "vllm":
        from data_prep.synthesis.engines.vllm import answering

        return {"engine_args": answering(settings.engine_args)}
    return {}


def flat(engine: Engine) -> dict[str, Any]:
    """An engine's identity beside settings: `engine`, its name, and `engine_KEY` for the rest."""
    return {key if key == "engine" else f"engine_{key}": value for key, value in engine.identity.items()}


def _name_at_server(settings: SynthesizeSettings, model: Path | None) -> str:
    return settings.server_model or str(model)


def _server(settings: SynthesizeSettings, model: Path) -> Engine:
    from transformers import AutoTokenizer

    from data_prep.synthesis.engines.server import ServerEngine

    if not settings.server_urls:
        raise UserError("--server-urls", "no server is named", "give its address, as http://HOST:PORT/v1")
    return ServerEngine(
        settings.server_urls,
        _name_at_server(settings, model),
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        concurrency=settings.concurrency,
        timeout_seconds=settings.request_timeout,
        retries=settings.request_retries,
        limit_seconds=settings.request_limit,
        api_key=os.environ.get(settings.server_key),
        prompt_form=settings.server_prompt,
        tokenizer=AutoTokenizer.from_pretrained(model),
        extra_body=settings.server_body,
    )


def _vllm(settings: SynthesizeSettings, model: Path) -> Engine:
    from data_prep.synthesis.engines.vllm import VllmEngine

    return VllmEngine(
        str(model),
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        max_model_len=settings.max_model_len,
        tensor_parallel_size=settings.tensor_parallel_size,
        dtype=settings.dtype,
        quantization=settings.quantization,
        concurrency=settings.concurrency,
        engine_args=settings.engine_args,
    )
