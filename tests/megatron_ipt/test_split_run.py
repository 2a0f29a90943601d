"""A run whose blend packs chains and sets raw documents apart: a validation row for each source, over its own texts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import TinyRun, ipt, with_byte_tokenizer

from data_prep.blend import plan, read_blend
from data_prep.indexing import index
from data_prep.readers import write_jsonl
from data_prep.records import Origin, Span, TrainingText
from data_prep.settings import BlendSettings, IndexSettings
from megatron_ipt.data.stream import ValidationStream
from megatron_ipt.training.metrics import read_metrics


def training_text(number: int) -> TrainingText:
    """Two texts with a pair each, of raw documents `number` and `number + 1`, of 20 characters and more."""
    text, spans, origins = "", list[Span](), list[Origin]()
    for place in range(2):
        parts = (("text", f"Wand {number + place} steht. " * 2, place), ("question", "Was?", place))
        for kind, part, of in (*parts, ("answer", " Das.\n", place)):
            spans.append(Span(len(text), len(text) + len(part), kind, of))
            text += part
        origins.append(Origin(f"doc-{number + place}", checks=("form",)))
    return TrainingText(f"chain-{number}", text, tuple(origins), spans=tuple(spans))


@pytest.fixture(scope="module")
def folder(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split_run")
    tokenizer = with_byte_tokenizer(tiny.hf, folder / "hf")
    write_jsonl(folder / "raw.jsonl", [{"id": f"doc-{n}", "text": f"Wand {n} steht. " * 4} for n in range(60)])
    write_jsonl(folder / "augmented.jsonl", [training_text(n).to_json() for n in range(60, 120, 2)])
    for name in ("raw", "augmented"):
        index(IndexSettings(encoder="tokenizers"), [folder / f"{name}.jsonl"], tokenizer, folder / name)
    sources = {
        "raw": {"prefix": "raw", "weight": 1},
        "augmented": {"prefix": "augmented", "kind": "augmented", "policy": "chains", "loss": "pairs", "weight": 1},
    }
    split = {"validation": 0.3}
    settings = BlendSettings.model_validate({"sources": sources, "seq_length": 64, "period": 8, "split": split})
    plan(settings, folder / "blend", folder)
    return folder


def test_each_source_has_a_validation_row_that_transformers_agrees_with(tiny: TinyRun, folder: Path) -> None:
    from transformers import LlamaForCausalLM

    blend = f"train.blend={folder / 'blend' / 'blend.json'}"
    ipt(
        "train", tiny.recipe, f"output_dir={folder / 'run'}", blend, "train.train_iters=2", "train.eval_iters=100",
        "train.held_out={}", f"model.load_hf={folder / 'hf'}",
    )  # fmt: skip
    rows = read_metrics(folder / "run/train/metrics.jsonl")
    at_start = {row["name"]: row for row in rows if row["kind"] == "validation" and row["iteration"] == 0}
    assert set(at_start) == {"raw", "augmented"}
    model = LlamaForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    planned = read_blend(folder / "blend/blend.json")
    for source in planned.sources:
        stream = ValidationStream(planned, source)
        total = count = 0.0
        for number in range(len(stream)):
            sample = stream.sample(number)
            with torch.no_grad():
                logits = model(torch.from_numpy(sample.tokens)[None]).logits[0]
            losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(sample.labels), reduction="none")
            total += float((losses * torch.from_numpy(sample.loss_mask)).sum())
            count += float(sample.loss_mask.sum())
        assert at_start[source.name]["loss"] == pytest.approx(total / count, abs=1e-5)
        # A token is a byte, and a document has an EOD besides.
        assert stream.tokens == stream.text_bytes + source.validation.documents  # type: ignore[union-attr]
        bits = total / count / math.log(2) * stream.tokens / stream.text_bytes
        assert at_start[source.name]["bits_per_byte"] == pytest.approx(bits, abs=1e-4)
    steps = [row for row in rows if row["kind"] == "train"]
    assert all(0 < row["sources"]["augmented"]["loss_tokens"] < 4 * 64 for row in steps)
