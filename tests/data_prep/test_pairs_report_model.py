"""Categories by a model: drawn alike, asked once, read strictly, every reply and failure counted."""

from __future__ import annotations

import random
import re
from collections import Counter
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import orjson
import pytest
from completions_server import serving
from hypothesis import given
from hypothesis import strategies as st
from scripted_engine import ScriptedEngine
from tokenizers_for_tests import llama3_like

from data_prep.checks.asking import MOST_FAILURES, Respondent
from data_prep.draws import draw
from data_prep.errors import UserError
from data_prep.pairs_report.categories import OTHER, categories, category_of
from data_prep.pairs_report.model_categories import ModelCategories, NamedPair, wilson
from data_prep.pairs_report.naming import (
    EXAMPLES,
    NEW_TOKENS,
    Namer,
    make_sample,
    name_pairs,
    names,
    open_namer,
    parse_category,
    prompt_of,
)
from data_prep.pairs_report.sample import AXIS, DrawnPair, Sample
from data_prep.readers import read_jsonl, write_jsonl
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import PairsReportSettings
from data_prep.synthesis.engines.contract import Completion, Request
from megatron_ipt.report import pairs as write_page

# Question, the rules' name, and what the model of these tests replies.
SCRIPT = {
    "Who kept the light?": ("person", " person"),
    "When was it built?": ("date and time", "Date and time."),
    "How many ships passed?": ("count", "**count**\nbecause it asks how many"),
    "How tall is it?": ("measure", "count"),
    "Why did he leave?": ("cause", "cause or effect"),
    "Lamp.": ("other", "other"),
    "Which lamp burned?": ("other fact", ""),
    "Where does it stand?": ("place", "the engine breaks"),
}
TEXT = "The lighthouse at Skarsund was built in 1874."


def corpus(copies: int = 3) -> list[Chain]:
    texts = [
        AugmentedText(f"d{number}", TEXT, tuple(Pair(question, f"answer {number}") for question in SCRIPT))
        for number in range(copies)
    ]
    return [Chain(f"c{number}", (text,)) for number, text in enumerate(texts)]


def asked(request: Request) -> str:
    """The question of a prompt: the last, after those of the examples."""
    return re.findall(r"--- question ---\n(.*?)\n--- answer", request.text)[-1]


def fails(requests: list[Request] | Any) -> None:
    if any(SCRIPT[asked(each)][1] == "the engine breaks" for each in requests):
        raise ConnectionError("the line is dead")


def model(**values: Any) -> Namer:
    engine = ScriptedEngine(
        before=values.pop("before", fails),
        reply=lambda each: Completion(SCRIPT[asked(each)][1], "stop", 1, 1),
        **values,
    )
    return partial(name_pairs, respondent=Respondent(engine, lambda prompt: list(map(ord, prompt))))


def drawn_of(chains: list[Chain], sample: Sample) -> list[DrawnPair]:
    for chain in chains:
        for text in chain.texts:
            for pair in text.pairs:
                sample.offer(pair, text, category_of(pair))
    return sample.drawn()


def test_the_draw_is_of_the_smallest_numbers_whatever_the_order():
    chains = corpus(40)
    everyone = {
        draw(7, f"\x1f{text.document_id}\x1f0\x1f0\x1f{pair.question}\x1f{pair.answer}", AXIS): (text.document_id, pair)
        for chain in chains
        for text in chain.texts
        for pair in text.pairs
    }
    expected = [everyone[number] for number in sorted(everyone)[:50]]
    for seed in range(4):
        random.Random(seed).shuffle(chains)
        sample = Sample(50, 7)
        assert [(each.document_id, each.pair) for each in drawn_of(chains, sample)] == expected
        assert sample.population == 320
    assert [(each.document_id, each.pair) for each in drawn_of(chains, Sample(20, 7))] == expected[:20]
    assert drawn_of(chains, Sample(20, 8)) != drawn_of(chains, Sample(20, 7))


def test_the_draw_may_be_of_some_categories_only():
    sample = Sample(1000, 7, {"other", "other fact"})
    assert Counter(each.rules for each in drawn_of(corpus(3), sample)) == {"other": 3, "other fact": 3}
    assert sample.population == 6


def test_every_category_has_a_line_and_a_name_that_fits_the_reply():
    prompt = prompt_of(Pair("{answer} {categories}?", "{question}"))
    lines = prompt.splitlines()
    assert [line.partition(": ")[0] for line in lines if ": " in line][: len(names())] == list(names())
    assert all(f"{each.name}: {each.asks}" in lines and each.asks for each in categories())
    assert len({each.asks for each in categories()}) == len(categories())
    assert prompt.endswith("--- question ---\n{answer} {categories}?\n--- answer ---\n{question}\n--- end ---")
    assert max(len(name.encode()) for name in names()) < NEW_TOKENS
    assert prompt_of(Pair("q" * 9999, "a" * 9999)).count("q" * 2000) == 1
    assert all(category_of(Pair(question, answer)) == name for question, answer, name in EXAMPLES)


@pytest.mark.parametrize(
    "dress", ["{}", " {}\n", "{}.", "**{}**", '"{}"', "'{}'", "Category: {}", "`{}`\nSince it asks so.", "**{}.**"]
)
def test_a_name_is_read_however_it_is_dressed(dress: str):
    for name in names():
        assert parse_category(dress.format(name)) == parse_category(dress.format(name.upper())) == name


@pytest.mark.parametrize(
    "reply",
    [
        *("", "\n", "counts", "count or measure", "count, measure", "It is count", "category", "inference between"),
        *("1. count", "not count", "<think>count", "coun t", "\ncount and more", "other facts"),
    ],
)
def test_what_is_no_name_is_not_guessed(reply: str):
    assert parse_category(reply) is None


@given(st.text(max_size=40) | st.sampled_from(names()).map(lambda name: name + "s"))
def test_any_reply_is_a_name_or_none(reply: str):
    found = parse_category(reply)
    assert found is None or found in reply.casefold()


@pytest.mark.parametrize(("batch_size", "concurrency"), [(1, 1), (1, 8), (5, 2), (64, 1)])
def test_each_pair_is_named_or_counted_with_its_words(batch_size: int, concurrency: int):
    sample = make_sample(PairsReportSettings())
    drawn = drawn_of(corpus(3), sample)
    before = fails if batch_size == 1 else lambda requests: None
    found = model(batch_size=batch_size, concurrency=concurrency, before=before)(sample)
    assert [each.drawn for each in found.pairs] == drawn and len(drawn) == 24 == found.population
    assert found.named + found.unreadable.total() + found.failed.total() == 24
    lost = {"cause or effect": 3, "": 3, "the engine breaks": 3}
    if batch_size == 1:
        del lost["the engine breaks"]
        assert found.failed == {"ConnectionError: the line is dead": 3}
    assert found.unreadable == lost
    both = [(name, name) for name in ("person", "date and time", "count", "other")]
    assert found.confusion == {**dict.fromkeys(both, 3), ("measure", "count"): 3}
    assert found.agreement == 12 / 15
    assert found.column(0) == {"person": 3, "date and time": 3, "count": 3, "measure": 3, "other": 3}
    assert found.column(1) == {"person": 3, "date and time": 3, "count": 6, "other": 3}


@pytest.mark.parametrize("copies", [1, MOST_FAILURES])
def test_an_engine_that_never_answers_is_one_error_and_nothing_is_written(copies: int, tmp_path: Path):
    def dead(requests: Any) -> None:
        raise ConnectionError("the line is dead")

    path = tmp_path / "chains.jsonl"
    write_jsonl(path, [chain.to_json() for chain in corpus(copies)])
    with pytest.raises(
        UserError, match=r"--category-engine-url: the model .* fails \(ConnectionError: the line is dead"
    ):
        write_page(path, tmp_path / "page.html", PairsReportSettings(), None, model(before=dead))
    assert not list(tmp_path.glob("page*"))


def categories_of(confusion: dict[tuple[str, str], int]) -> ModelCategories:
    pairs = [
        NamedPair(DrawnPair("d", 0, Pair("q", "a"), rules), name, name, failed=False)
        for (rules, name), number in confusion.items()
        for _ in range(number)
    ]
    return ModelCategories({"engine": "scripted"}, len(pairs), (), pairs)


def test_kappa_is_agreement_beyond_chance():
    worked = categories_of({("yes", "yes"): 20, ("yes", "no"): 5, ("no", "yes"): 10, ("no", "no"): 15})
    assert worked.agreement == 0.7
    assert worked.kappa == pytest.approx((0.7 - (0.5 * 0.6 + 0.5 * 0.4)) / (1 - 0.5))
    assert categories_of({("a", "a"): 3, ("b", "b"): 2}).kappa == 1
    always = categories_of({("a", "a"): 5, ("b", "a"): 5})  # a model that says one thing only has learnt nothing
    assert (always.agreement, always.kappa) == (0.5, 0)
    assert categories_of({("a", "a"): 5}).kappa is None and categories_of({}).kappa is None
    assert categories_of({}).agreement is None and categories_of({}).interval is None


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_the_interval_s_ends_are_1_96_deviations_away(total: int, share: float):
    hits = round(total * share)
    low, high = wilson(hits, total)
    assert 0 <= low <= hits / total <= high <= 1
    for end in {low, high} - {0.0, 1.0}:
        assert (hits / total - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / total, rel=1e-6, abs=1e-12)


@pytest.fixture
def chains_path(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "chains.jsonl", [chain.to_json() for chain in corpus(3)])
    return tmp_path / "chains.jsonl"


def test_page_summary_and_rows_tell_the_same(chains_path: Path, tmp_path: Path):
    out = tmp_path / "page.html"
    found = write_page(chains_path, out, PairsReportSettings(category_pairs=20), None, model())
    assert found is not None and len(found.pairs) == 20
    rows = list(read_jsonl(tmp_path / "page.html.categories.jsonl"))
    summary = orjson.loads((tmp_path / "page.html.summary.json").read_bytes())
    told = summary["model_categories"]
    assert [row["status"] for row in rows].count("named") == told["named"] == found.named
    assert told["asked"] == 20 == told["named"] + told["unreadable"] + told["failed"] and told["population"] == 24
    assert {row["rules"] for row in rows} <= {rules for rules, _ in SCRIPT.values()}
    assert all(SCRIPT[row["question"]][0] == row["rules"] for row in rows)
    assert told["agreement"] == sum(row["rules"] == row["model"] for row in rows) / told["named"]
    assert told["agreement_95"] == pytest.approx(wilson(found.agreeing, found.named))
    assert sum(each["pairs"] for each in told["confusion"]) == told["named"] == sum(told["rules"].values())
    assert summary["pairs"] == 24 == sum(summary["categories"].values())
    words = " ".join(unescape(re.sub(r"<[^>]+>", " ", out.read_text(encoding="utf-8"))).split())
    assert found.agreement is not None
    assert "20 of 24 pairs, drawn from all alike" in words
    assert f"a model agrees on {100 * found.agreement:.1f} %" in words
    assert f"it calls {100 * found.agreement:.1f} % (95 %: " in words
    assert "ConnectionError: the line is dead" in words and "cause or effect" in words
    both = found.confusion["count", "count"]
    assert f"count {found.column(0)['count']} {found.column(1)['count']} {both} 100.0 %" in words
    assert f"measure {found.column(0)['measure']} 0 0 0.0 %" in words


def test_through_a_real_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    script = ["says: count", "says:Person", "says:I cannot tell", "refuse"]
    with serving(script, default="says: other") as server:
        settings = PairsReportSettings(
            category_engine_url=(server.url,), category_model="m", category_tokenizer=llama3_like(tmp_path),
            category_pairs=6,
        )  # fmt: skip
        namer, sample = open_namer(settings), make_sample(settings)
        assert namer is not None and drawn_of(corpus(3), sample)
        found = namer(sample)
    assert len(server.bodies) == 6 == len(found.pairs)
    assert found.column(1) == {"count": 1, "person": 1, "other": 2}
    assert found.unreadable == {"I cannot tell": 1}
    (failure,) = found.failed
    assert "longer than the context of 8 tokens" in failure and server.url in failure
    assert {body["temperature"] for body in server.bodies} == {0} and set(server.keys) == {"Bearer k"}
    assert {body["max_tokens"] for body in server.bodies} == {NEW_TOKENS}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"category_model": "m"}, "needs --category-engine-url"),
        ({"category_engine_url": ("http://a",), "category_model": "m"}, "--category-tokenizer"),
        ({"category_only": ("other",)}, "needs --category-engine-url"),
        ({"category_only": ("coutn",)}, "no category 'coutn'; did you mean 'count'"),
    ],
)
def test_settings_that_lack_a_part_are_told_in_a_line(values: dict[str, Any], told: str):
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        open_namer(PairsReportSettings(**values))
    assert "\n" not in str(caught.value)


def test_without_a_model_the_rules_stand_alone(chains_path: Path, tmp_path: Path):
    assert open_namer(PairsReportSettings()) is None
    assert write_page(chains_path, tmp_path / "page.html", PairsReportSettings()) is None
    summary = orjson.loads((tmp_path / "page.html.summary.json").read_bytes())
    assert summary["model_categories"] is None and OTHER in summary["categories"]
    assert "model" not in (tmp_path / "page.html").read_text(encoding="utf-8").partition("</style>")[2].lower()
