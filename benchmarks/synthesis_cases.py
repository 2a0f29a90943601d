"""What synthesis.py measures, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement: `kind` is instant, around or vllm; `settings` are those of `ipt data synthesize`.

    instant: `documents` of 3,000 characters; each turn once with answers at once, and
    once with answers after four seconds.
    around: the same with two numbers of documents, by each tokenizer, with each of `limits` as max_text_tokens; a
    tokenizer that is slow gets a tenth of them.
    vllm: `documents` of the Wikipedia sample that have between `shortest` and `longest` characters; with `one_pair`
    what the model writes becomes one pair: a small model without demonstrations writes none.
    """

    kind: str
    documents: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    limits: tuple[int | None, ...] = ()
    shortest: int = 0
    longest: int = 0
    one_pair: bool = False
    told: str = ""


_SIZE: Final = {"enforce_eager": True, "max_num_batched_tokens": 2048}
_SMALL: Final = {
    "rounds": 3,
    "max_new_tokens": 64,
    "temperature": 0.0,
    "demonstrations": "builtin",
    "dtype": "float32",
}
CASES: Final = {
    "instant": Case("instant", (5000,), told="an engine that answers at once, and one after four seconds"),
    "around": Case("around", (500, 5000), limits=(512, None), told="text a processor second around the engine"),
    "vllm": Case(
        "vllm",
        (36,),
        {**_SMALL, "max_model_len": 2048, "concurrency": 12} | {"engine_args": {**_SIZE, "max_num_seqs": 4}},
        shortest=300,
        longest=700,
        told="vLLM, short documents; the prefix cache holds all that is made of them",
    ),
    "vllm-corpus": Case(
        "vllm",
        (18,),
        {**_SMALL, "max_model_len": 2048, "concurrency": 2, "max_new_tokens": 96, "demonstrations": None}
        | {"engine_args": {**_SIZE, "max_num_seqs": 2, "num_gpu_blocks_override": 24}},
        shortest=1200,
        longest=2000,
        one_pair=True,
        told="vLLM, longer documents, no demonstrations; the prefix cache holds the chains under way, not the corpus",
    ),
    "vllm-3kb": Case(
        "vllm",
        (36,),
        {**_SMALL, "max_model_len": 4096, "max_new_tokens": 96, "demonstrations": None}
        | {"engine_args": {**_SIZE, "max_num_seqs": 4, "num_gpu_blocks_override": 90}},
        shortest=2500,
        longest=3500,
        one_pair=True,
        told="the same with documents of 3 KB, four sequences at once, and all chains under way",
    ),
}
