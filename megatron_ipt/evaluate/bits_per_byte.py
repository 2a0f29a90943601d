"""Bits per byte of held-out documents under a Hugging Face directory, by lm-eval's loglikelihood_rolling.

Each document is scored whole, in windows of `max_length` tokens; the first window begins with the prefix token,
which alone can move the figure by 0.3 % and is therefore part of the result.  A document's bits are kept, so that two
models are compared document by document.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from megatron_ipt.recipe import EvaluateSettings


@dataclass(frozen=True, slots=True)
class TextSet:
    """A named JSONL file with a `text` a line.  `self_made`: written by the model's own kind, or trained on."""

    name: str
    path: Path
    self_made: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """Bits and UTF-8 bytes of each document of a set, in the order of the file."""

    name: str
    self_made: bool
    tokens: int
    bits: list[float] = field(repr=False)
    bytes: list[int] = field(repr=False)

    @property
    def bits_per_byte(self) -> float:
        return sum(self.bits) / sum(self.bytes)


def evaluate(settings: EvaluateSettings, model: Path, sets: Sequence[TextSet], out: Path) -> list[Score]:
    """Score `model` on every set and write `out` (JSON).  UserError for a missing model, file or prefix token."""
    if not (model / "config.json").exists():
        raise UserError(model, "no Hugging Face directory", "export a checkpoint with `ipt convert export`")
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    from megatron_ipt.mcore import device

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    prefix = settings.prefix_token or tokenizer.eos_token
    prefix_id = tokenizer.get_vocab().get(prefix)
    if prefix_id is None:
        raise UserError("evaluate.prefix_token", f"{prefix!r} is no token of {model}", "name one of its tokens")
    engine = HFLM(
        pretrained=str(model),
        tokenizer=tokenizer,
        device=device.pick("device"),
        dtype=settings.dtype,
        max_length=settings.max_length,
        batch_size=settings.batch_size,
        prefix_token_id=prefix_id,
    )
    scores = _score(engine, tokenizer, settings, sets)
    result = {
        "model": model.name,
        "settings": {**settings.model_dump(mode="json"), "prefix_token": prefix},
        "sets": [{**asdict(score), "bits_per_byte": score.bits_per_byte} for score in scores],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    waiting = out.with_suffix(".partial")
    waiting.write_text(json.dumps(result, indent=1), encoding="utf-8")
    waiting.replace(out)
    return scores


def read_scores(path: Path) -> list[Score]:
    """The scores that `evaluate` wrote."""
    names = ("name", "self_made", "tokens", "bits", "bytes")
    return [
        Score(**{name: row[name] for name in names}) for row in json.loads(path.read_text(encoding="utf-8"))["sets"]
    ]


def difference(before: Score, after: Score, draws: int = 2000, seed: int = 1234) -> tuple[float, float]:
    """Change in bits per byte and its standard error over documents (paired bootstrap); documents must be the same."""
    if before.bytes != after.bytes:
        raise UserError(before.name, "the two models were scored on different documents", "score both on the same file")
    generator = random.Random(seed)
    count = len(before.bits)
    deltas = [after.bits[i] - before.bits[i] for i in range(count)]
    sample = []
    for _ in range(draws):
        chosen = generator.choices(range(count), k=count)
        sample.append(sum(deltas[i] for i in chosen) / sum(before.bytes[i] for i in chosen))
    mean = sum(sample) / draws
    error = math.sqrt(sum((value - mean) ** 2 for value in sample) / (draws - 1))
    return sum(deltas) / sum(before.bytes), error


def choose(tokenizer: Any, path: Path, max_tokens: int) -> tuple[list[str], int]:
    """The first whole documents of `path` that together reach `max_tokens` tokens, and how many tokens they have."""
    from data_prep.readers import read_jsonl

    texts: list[str] = []
    tokens = 0
    for row in read_jsonl(path):
        if tokens >= max_tokens:
            break
        if str(row.get("text", "")).strip():
            texts.append(row["text"])
            tokens += len(tokenizer(row["text"], add_special_tokens=False)["input_ids"])
    if not texts:
        raise UserError(path, "no text to score", "give a JSONL file with a `text` a line")
    return texts, tokens


def _score(engine: Any, tokenizer: Any, settings: EvaluateSettings, sets: Sequence[TextSet]) -> list[Score]:
    """Every set through lm-eval, each a task made on the spot that reads a local file and names its split."""
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    datasets.disable_progress_bars()
    limits = [settings.self_made_tokens if texts.self_made else settings.max_tokens for texts in sets]
    chosen = [choose(tokenizer, texts.path, limit) for texts, limit in zip(sets, limits, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            _task(texts.name, documents, Path(folder, str(number)))
            for number, (texts, (documents, _)) in enumerate(zip(sets, chosen, strict=True))
        ]
        found = simple_evaluate(
            model=engine,
            tasks=tasks,
            task_manager=TaskManager(include_defaults=False),  # lm-eval's own tasks are 26,000 files to read
            bootstrap_iters=0,
            log_samples=True,
            verbosity="ERROR",
        )
    return [_checked(texts, documents, tokens, found) for texts, (documents, tokens) in zip(sets, chosen, strict=True)]


def _task(name: str, documents: list[str], folder: Path) -> dict[str, Any]:
    folder.mkdir()
    file = folder / "texts.json"
    file.write_text(json.dumps([{"text": text} for text in documents]), encoding="utf-8")
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": "bits_per_byte"}],
    }


def _checked(texts: TextSet, documents: list[str], tokens: int, found: dict[str, Any]) -> Score:
    """What lm-eval found for one set; its own figure has to be that of its samples."""
    samples = sorted(found["samples"][texts.name], key=lambda sample: int(sample["doc_id"]))
    bits = [-float(sample["filtered_resps"][0]) / math.log(2) for sample in samples]
    score = Score(texts.name, texts.self_made, tokens, bits, [len(text.encode("utf-8")) for text in documents])
    reported = found["results"][texts.name]["bits_per_byte,none"]
    if not math.isclose(reported, score.bits_per_byte, rel_tol=1e-6):
        raise RuntimeError(f"lm-eval reports {reported} bits per byte, its samples give {score.bits_per_byte}")
    return score
