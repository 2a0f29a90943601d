"""The engine of a laptop: a Hugging Face model in this process, through transformers.

The prompts of a call run as one batch.  What they all begin with (demonstrations) is computed once;
the rest is padded on the left, after that beginning, under an attention mask.  A completion ends at
EOS or at any other special id: the wire format is plain text, and a model tuned for chat may close
its turn with an id of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import torch
import xxhash
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, Cache, DynamicCache, StaticCache

from data_prep.errors import UserError
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.engines.contract import Completion, Request


class TransformersEngine:
    """Batched generation; greedy at temperature 0, else sampled from a seed made of the requests'.

    Raises:
        UserError: no model can be loaded from the directory, or it does not fit the memory.
    """

    def __init__(self, model_dir: Path | str, settings: SynthesizeSettings) -> None:
        folder = Path(model_dir)
        self.settings = settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=_dtype(settings.dtype))
            self.model = model.to(self.device).eval()
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # out of memory is a RuntimeError
            mend = "give a whole Hugging Face model directory, and a device whose memory holds it"
            raise UserError(folder, f"no model could be loaded ({type(error).__name__}: {error})", mend) from error
        self.stop_ids = sorted(self._special_ids())
        self._identity = {
            "engine": "transformers",
            "model": fingerprint(folder),
            "dtype": settings.dtype,
            "max_new_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "seed": settings.seed if settings.temperature > 0 else None,
        }

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size

    @property
    def concurrency(self) -> int:
        return 1

    @property
    def identity(self) -> Mapping[str, Any]:
        return self._identity

    async def close(self) -> None:
        """The model goes with this object."""

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion a request, in their order, generated as one batch; nothing else runs meanwhile."""
        return self._generate([request.prompt for request in requests], [request.seed for request in requests])

    def _generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Completion]:
        shared = shared_prefix(prompts)
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.stop_ids[0], dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            for places, part in (
                (slice(0, shared), prompt[:shared]),
                (slice(longest - len(prompt) + shared, None), prompt[shared:]),
            ):
                ids[row, places] = torch.tensor(part, dtype=torch.long)
                mask[row, places] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(xxhash.xxh3_64_intdigest(orjson.dumps(list(seeds))) >> 1)
            cache = self._prefix_cache(ids[:1, :shared], len(prompts), longest + self.settings.max_new_tokens)
            output = self.model.generate(ids, attention_mask=mask, past_key_values=cache, **self._options())
        rows = output[:, longest:].tolist()
        return [self._completion(len(prompt), row) for prompt, row in zip(prompts, rows, strict=True)]

    def _prefix_cache(self, ids: torch.Tensor, count: int, length: int) -> Cache:
        """Room for keys and values of `count` prompts of `length` tokens; a prefix [1, tokens] is computed once."""
        cache = StaticCache(config=self.model.config, max_cache_len=length)
        if ids.shape[1] > 0:
            prefix = DynamicCache(config=self.model.config)
            self.model(ids, past_key_values=prefix, use_cache=True, logits_to_keep=1)
            for number, layer in enumerate(prefix.layers):
                keys, values = (part.expand(count, -1, -1, -1) for part in (layer.keys, layer.values))
                cache.update(keys, values, number)
        return cache

    def _options(self) -> dict[str, Any]:
        """Generation options; the model's own sampling defaults are switched off by name."""
        options: dict[str, Any] = {
            "max_new_tokens": self.settings.max_new_tokens,
            "eos_token_id": self.stop_ids,
            "pad_token_id": self.stop_ids[0],
            "do_sample": self.settings.temperature > 0,
            "repetition_penalty": 1.0,
        }
        if self.settings.temperature > 0:
            options |= {"temperature": self.settings.temperature, "top_k": 0, "top_p": 1.0}
        return options

    def _completion(self, prompt_tokens: int, row: list[int]) -> Completion:
        stop = next((place for place, token in enumerate(row) if token in self.stop_ids), None)
        text = self.tokenizer.decode(row[:stop], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        finished = stop is not None
        return Completion(text, "stop" if finished else "length", prompt_tokens, len(row) if stop is None else stop + 1)

    def _special_ids(self) -> set[int]:
        eos = self.model.generation_config.eos_token_id
        own = {eos} if isinstance(eos, int) else set(eos or ())
        return (
            own
            | set(self.tokenizer.all_special_ids)
            | {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        )


def _dtype(name: str) -> Any:
    """`auto` is the number format of the model's files."""
    return name if name == "auto" else getattr(torch, name)


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, each keeping at least one of its own; 0 for one prompt alone."""
    if len(prompts) < 2:
        return 0
    first, *_, last = sorted(map(list, prompts))
    shortest = min(map(len, prompts)) - 1
    return next((place for place in range(shortest) if first[place] != last[place]), shortest)


def fingerprint(folder: Path) -> str:
    """A hash of the files that decide what a model writes: configuration, weights and tokenizer."""
    digest = xxhash.xxh3_128()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()
