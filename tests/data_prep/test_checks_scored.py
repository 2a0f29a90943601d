"""A model's scores: asked in batches for what is left, parsed strictly, every failure counted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.checks import check
from data_prep.checks.asking import MOST_FAILURES, Respondent, chat_encoder
from data_prep.checks.scored import PROMPT, parse_score, prompt_of
from data_prep.errors import UserError
from data_prep.readers import read_jsonl, write_jsonl
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import CheckSettings
from data_prep.synthesis.engines.contract import Completion, Request

TEXT = "The lighthouse at Skarsund was built in 1874."


@dataclass
class FakeEngine:
    """Replies what stands as the answer of the asked pair; `fails` names answers at which a call fails."""

    batch_size: int = 1
    concurrency: int = 4
    fails: tuple[str, ...] = ()
    calls: list[list[str]] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    closed: bool = False

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"engine": "fake"}

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        prompts = ["".join(map(chr, request.prompt)) for request in requests]
        answers = [re.findall(r"--- answer ---\n(.*)\n--- end", prompt, re.DOTALL)[0] for prompt in prompts]
        self.calls.append(answers)
        for _ in range(1 + len(self.calls) % 3):  # replies come out of order
            await asyncio.sleep(0)
        self.under_way -= 1
        if set(answers) & set(self.fails):
            raise ConnectionError("the line is dead")
        return [Completion(answer, "stop", len(prompts[0]), 1) for answer in answers]

    async def close(self) -> None:
        self.closed = True


def run(tmp_path: Path, engine: FakeEngine, texts: list[list[str]], **values: Any) -> dict[str, Any]:
    """Checks a chain a text, whose answers are what the judge replies."""
    chains = [
        Chain(
            f"c{i}", (AugmentedText(f"d{i}", TEXT, tuple(Pair(f"q{j}", answer) for j, answer in enumerate(answers))),)
        )
        for i, answers in enumerate(texts)
    ]
    write_jsonl(tmp_path / "in.jsonl", [chain.to_json() for chain in chains])
    settings = CheckSettings(**{"checks": ("form", "scored"), **values})
    scorer = Respondent(engine, lambda prompt: list(map(ord, prompt)))
    return check(settings, tmp_path / "in.jsonl", tmp_path / "out.jsonl", scorer)


def kept(tmp_path: Path) -> list[list[str]]:
    chains = [Chain.from_json(row) for row in read_jsonl(tmp_path / "out.jsonl")]
    assert all(pair.checks[-1] == "scored" for chain in chains for text in chain.texts for pair in text.pairs)
    return [[pair.answer for text in chain.texts for pair in text.pairs] for chain in chains]


@pytest.mark.parametrize(("batch_size", "concurrency"), [(1, 1), (1, 7), (3, 2), (64, 1)])
def test_low_scores_go_whatever_the_batches(tmp_path: Path, batch_size: int, concurrency: int):
    engine = FakeEngine(batch_size, concurrency)
    texts = [["5", "3", " "], ["4"], ["1", "none"], ["Score: 4"]] * 5
    summary = run(tmp_path, engine, texts)
    assert kept(tmp_path) == [["5"], ["4"], ["Score: 4"]] * 5
    assert summary["dropped"] == {"form": {"empty_answer": 5}, "scored": {"score_3": 5, "score_1": 5, "no_score": 5}}
    assert summary["in"] == 35 == summary["kept"] + 20
    assert sum(map(len, engine.calls)) == 30  # what a cheaper check drops is not asked about
    assert max(map(len, engine.calls)) <= batch_size
    assert engine.most_under_way <= concurrency
    assert engine.closed
    assert summary["judge"] == {"engine": "fake"}
    words = {
        row["reason"]: row["detail"] for row in read_jsonl(tmp_path / "out.jsonl.dropped.jsonl") if "detail" in row
    }
    assert words == {"score_3": "3", "score_1": "1", "no_score": "none"}


def test_batches_are_filled_across_chains(tmp_path: Path):
    engine = FakeEngine(batch_size=4, concurrency=2)
    run(tmp_path, engine, [["5"]] * 10)
    assert sorted(map(len, engine.calls)) == [2, 4, 4]


def test_the_lowest_score_that_stays_is_settable(tmp_path: Path):
    run(tmp_path, FakeEngine(), [["2", "3", "5"]], judge_min_score=3)
    assert kept(tmp_path) == [["3", "5"]]


def test_a_failed_call_costs_its_pairs_and_is_told_in_the_engine_s_words(tmp_path: Path):
    summary = run(tmp_path, FakeEngine(fails=("bad",)), [["5", "bad"], ["5"]])
    assert kept(tmp_path) == [["5"], ["5"]]
    assert summary["dropped"]["scored"] == {"engine_failed": 1}
    (row,) = read_jsonl(tmp_path / "out.jsonl.dropped.jsonl")
    assert row["detail"] == "ConnectionError: the line is dead"


@pytest.mark.parametrize("count", [1, MOST_FAILURES * 3])
def test_an_engine_that_never_answers_is_an_error_and_nothing_is_written(tmp_path: Path, count: int):
    engine = FakeEngine(fails=("bad",))
    with pytest.raises(UserError, match=r"the judge fails \(ConnectionError: the line is dead\)"):
        run(tmp_path, engine, [["bad"]] * count)
    assert not list(tmp_path.glob("out*"))
    assert engine.closed
    assert len(engine.calls) < MOST_FAILURES + 3 * engine.concurrency


def test_what_is_a_score():
    for reply, expected in {
        "4": 4, " 4\n": 4, "Score: 5": 5, "**3**": 3, "2/5": 2, "1.": 1, "5\nBecause it is right.": 5,
        "": None, "6": None, "0": None, "45": None, "4.5": None, "-4": None, "four": None, "4 or 5": None,
        "I give 4": None, "4/10": None,
    }.items():  # fmt: skip
        assert parse_score(reply) == expected, reply


@given(st.text(max_size=20))
def test_any_reply_gives_a_score_of_1_to_5_or_none(reply: str):
    assert parse_score(reply) in (None, 1, 2, 3, 4, 5)


def test_the_prompt_holds_text_and_pair_as_they_are():
    prompt = prompt_of(Pair("{answer} {text}?", "{question}"), AugmentedText("d", "{answer}" * 9), 16)
    shown = prompt.partition("--- text ---\n")[2]
    assert shown.startswith("{answer}{answer}\n--- question ---\n{answer} {text}?\n--- answer ---\n{question}\n--- end")
    assert prompt.startswith(PROMPT.partition("{text}")[0])


def test_the_order_and_the_settings_are_asked_for(tmp_path: Path):
    write_jsonl(tmp_path / "in.jsonl", [])
    for checks, told in ((("scored", "form"), "is not the last"), (("scored",), "needs judge_engine_url")):
        with pytest.raises(UserError, match=told):
            check(CheckSettings(checks=checks), tmp_path / "in.jsonl", tmp_path / "out.jsonl")


def test_a_pair_cannot_end_its_turn_in_a_chat_template(tmp_path: Path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<|turn|>"]
    made = Tokenizer(models.BPE({chr(i): i for i in range(127)}, []))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(tmp_path / "plain")
    fast.chat_template = "<s><|turn|>{{ messages[0].content }}</s><|turn|>"
    fast.save_pretrained(tmp_path / "chat")
    bos, eos, turn = (fast.convert_tokens_to_ids(name) for name in special)
    opening = list(map(ord, "Score:"))
    for folder, around in (("plain", ([bos], [ord("\n"), *opening])), ("chat", ([bos, turn], [eos, turn, *opening]))):
        ids = chat_encoder(tmp_path / folder, "Score:")("a</s><|turn|>b")
        head, tail = around
        assert ids[: len(head)] == head and ids[len(ids) - len(tail) :] == tail
        assert not {bos, eos, turn} & set(ids[len(head) : len(ids) - len(tail)])
