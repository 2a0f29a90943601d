"""What decides the bytes of a run, so that it is gone on with, or left as it is, by the same alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
import xxhash

from data_prep.intake.inputs import name_of, paths_of, spelled
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.demonstrations import file_of
from data_prep.synthesis.engines import Engine, flat, state_of

EXECUTION: Final = frozenset(
    {"workers", "executor", "gpus_per_worker", "concurrency", "tensor_parallel_size", "engine_args", "preset"}
    | {"server_urls", "server_key", "server_body", "request_timeout", "request_retries", "request_limit"}
)
"""Settings of how a run is made, or (preset, engine_args, server_body) told by what they come to; all others decide
what it makes, and stay as they are while a run is on its way."""
INPUT_FILES: Final = "input_files"
"""What a run on its way may have otherwise: a corpus is copied, or mounted elsewhere, and has been read already."""
TEXTS: Final = frozenset(
    {"inputs", INPUT_FILES, "text_key", "id_key", "source", "split", "max_document_bytes", "documents"}
    | {"samples", "max_text_tokens", "shard_documents", "batch_size"}
)
"""What a retry may have otherwise, over and above: its texts are read, chosen and cut already, and how many go together
decides no more than rounding; a batch too large may be why they failed."""
BLOCKS: Final = 16
BLOCK_BYTES: Final = 1 << 18


def identity_of(
    inputs: Sequence[Path | str],
    settings: SynthesizeSettings,
    tokenizer: str,
    model: Path | None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """What decides the bytes of a run: settings, inputs, tokenizer, model, and what else the engine answers by.

    `engine` is there already, in place of that of the settings.  JSON values, as they come back from a file.
    """
    content = settings.model_dump(mode="json", exclude=set(EXECUTION))
    if settings.demonstrations is not None:
        content["demonstrations"] = xxhash.xxh3_128_hexdigest(file_of(settings.demonstrations).read_bytes())
    own = {**_state(inputs), "tokenizer": tokenizer, "model": _model_state(model)}
    answers = state_of(settings, model) if engine is None else flat(engine)
    found: dict[str, Any] = orjson.loads(orjson.dumps({**content, **own, **answers}))
    return found


def of_retry(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a retry has to have in common with its run."""
    return {key: value for key, value in identity.items() if key not in TEXTS}


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys by which two identities differ; where the inputs differ, nothing of their places and times."""
    found = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    return [key for key in found if key != INPUT_FILES or "inputs" not in found]


def _state(inputs: Sequence[Path | str]) -> dict[str, str]:
    """Hashes of the files: to read a corpus for its own takes as long as to read it.

    inputs: their names, below the folders that are given, and sizes; INPUT_FILES: where they lie, and of when they are.
    """
    what, which = xxhash.xxh3_128(), xxhash.xxh3_128()
    for given in inputs:
        paths = paths_of(given)
        what.update(f"{spelled(name_of(given) if paths else given)}\x1e".encode())
        for path in paths:
            for file in _files(path):
                state = file.stat()
                name = spelled(file.name if file == path else file.relative_to(path))
                what.update(f"{name}\x1f{state.st_size}\x1f".encode())
                which.update(f"{spelled(file.resolve())}\x1f{state.st_mtime_ns}\x1f".encode())
    return {"inputs": what.hexdigest(), INPUT_FILES: which.hexdigest()}


def _model_state(model: Path | None) -> str | None:
    """A hash of names, sizes and blocks of a model's files; copies of it on several machines have the same.

    An engine hashes all of the weights when it is made; here a part has to do, as this is asked before.  Hidden files,
    what a download has left say, do not count.
    """
    if model is None or not model.exists():
        return None if model is None else str(model)
    digest = xxhash.xxh3_128()
    for path in _files(model):
        if any(part.startswith(".") for part in path.relative_to(model).parts):
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}\x1f{size}\x1f".encode(errors="surrogateescape"))
        with path.open("rb") as stream:
            for block in range(BLOCKS):
                stream.seek(max(size - BLOCK_BYTES, 0) * block // (BLOCKS - 1))
                digest.update(stream.read(BLOCK_BYTES))
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(each for each in path.rglob("*") if each.is_file())
    else:
        yield path
