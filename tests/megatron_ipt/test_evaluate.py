"""Bits per byte through lm-eval, held against a sum by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import TinyRun, with_byte_tokenizer

from data_prep.errors import UserError
from megatron_ipt.evaluate.bits_per_byte import Score, TextSet, difference, evaluate, read_scores
from megatron_ipt.recipe import EvaluateSettings

TEXTS = ["the cat sat on the mat", "ein Käse, bitte", "a", "one two three four five six seven eight nine ten " * 3]


@pytest.fixture(scope="module")
def model(tiny: TinyRun) -> Path:
    return with_byte_tokenizer(tiny.hf, tiny.folder / "hf_with_tokenizer")


def by_hand(model: Path, text: str) -> float:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = [0, *AutoTokenizer.from_pretrained(model)(text, add_special_tokens=False)["input_ids"]]
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        logs = network(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    return -float(logs.gather(1, torch.tensor(ids[1:])[:, None]).sum()) / math.log(2)


def test_lm_eval_gives_the_bits_of_a_sum_by_hand(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "held_out.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    out = tmp_path / "scores.json"
    settings = EvaluateSettings(max_length=256, prefix_token="<eod>")
    (score,) = evaluate(settings, model, [TextSet("held_out", file)], out)
    assert score.bytes == [len(text.encode()) for text in TEXTS]
    assert score.bits == pytest.approx([by_hand(model, text) for text in TEXTS], rel=1e-5)
    assert read_scores(out) == [score]


def test_an_unknown_prefix_token_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prefix_token"):
        evaluate(EvaluateSettings(prefix_token="<nothing>"), model, [], tmp_path / "o.json")


def test_a_difference_is_of_the_same_documents() -> None:
    before = Score("x", False, 3, [10.0, 20.0, 30.0], [10, 10, 10])
    after = Score("x", False, 3, [9.0, 19.0, 29.0], [10, 10, 10])
    change, error = difference(before, after)
    assert change == pytest.approx(-0.1)
    assert error == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(UserError, match="different documents"):
        difference(before, Score("x", False, 2, [9.0, 19.0], [10, 10]))
