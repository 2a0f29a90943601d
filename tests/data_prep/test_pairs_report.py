"""The page of pairs: its counts are those of a naive loop, its categories those a reader would name."""

from __future__ import annotations

import re
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import pairs_report
from data_prep.checks.grounding import grounding
from data_prep.errors import UserError
from data_prep.pairs_report import PairFigures, beginning_of, count_pairs, kind_of, read_drops
from data_prep.pairs_report.categories import OTHER, categories, category_of
from data_prep.readers import write_json, write_jsonl
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import PairsReportSettings
from megatron_ipt.report import pairs as write_page
from megatron_ipt.report.bars import histogram, wedges

TEXT = "The lighthouse at Skarsund was built in 1874. Its keeper was Ingrid Dahl."
HOSTILE = "What is <script>alert('met')</script> <img src=http://evil.example/x> {{ 7 * 7 }}?"
OPTIONS = "\nOptions:\n- red\n- blue"

CATEGORIES = {
    "Who kept the light?": "person",
    "When was it built?": "date and time",
    "In which year was it built?": "date and time",
    "Where does it stand?": "place",
    "How many ships passed?": "count",
    "How long did she serve?": "duration",
    "How often did she wind it?": "frequency",
    "How tall is the tower?": "measure",
    "Why did he leave?": "cause",
    "How does the lamp work?": "process",
    "What is a lighthouse?": "definition",
    "What is the main idea of the passage?": "main idea",
    "Summarize the text.": "summary",
    "Give the text a title.": "title",
    "Translate the first sentence.": "translation",
    "What does the word keeper mean?": "word meaning",
    'Explain the term "wick" by what the text says.': "word meaning",
    'How is "wick" defined here?': "word meaning",
    "What did the keeper say?": "conversation",
    "What does the text say of the lamp?": "other fact",
    "What does NASA stand for?": "abbreviation",
    "What can be inferred about the keeper?": "inference",
    "Compare the two lamps.": "comparison",
    "What happened first?": "order of events",
    "Does the first sentence entail the second?": "inference between sentences",
    "True or false: it was built in 1874.": "true or false",
    "What is the sentiment of the review?": "sentiment",
    "Was it tall?": "yes or no",
    "The tower was built in ____.": "gap filling",
    "What percentage of ships sank?": "share and per cent",
    "What would have happened if it had failed?": "hypothetical",
    "List the parts of a lamp.": "list",
    "Which lamp burned?": "other fact",
    "Lamp." + OPTIONS: "choice of options",
    "Lamp.": OTHER,
    "Wer war die Wärterin?": "person",
    "Wann wurde er gebaut?": "date and time",
    "Warum ging sie?": "cause",
    "Wie viele Schiffe fuhren vorbei?": "count",
    "Ist der Turm hoch?": "yes or no",
    "Worum geht es im Text?": "main idea",
    "谁是看守人?": "person",
    "灯塔是什么时候建的?": "date and time",
    "她为什么离开?": "cause",
    "灯塔高吗?": "yes or no",
    "总结这篇文章。": "summary",
}


@pytest.mark.parametrize(("question", "category"), CATEGORIES.items())
def test_a_question_is_put_where_a_reader_would_put_it(question: str, category: str):
    assert category_of(Pair(question, "Ingrid")) == category


def test_there_are_forty_categories_and_more_with_names_of_their_own():
    names = [each.name for each in categories()]
    assert len(names) == len(set(names)) >= 40
    assert OTHER not in names


@given(st.text(max_size=80), st.text(max_size=20))
def test_any_pair_has_a_category_and_a_beginning(question: str, answer: str):
    pair = Pair(question, answer)
    assert category_of(pair) in {each.name for each in categories()} | {OTHER}
    assert len(beginning_of(pair)) == 2


def test_kinds_and_beginnings():
    rows = [
        Pair("What is it?", "x"),
        Pair("Q", "x", rationale=True),
        Pair("Q" + OPTIONS, "red"),
        Pair("谁是看守人?", "x"),
    ]
    assert [kind_of(pair) for pair in rows] == ["free", "free, with rationale", "choice", "free"]
    assert (
        kind_of(Pair("Q" + OPTIONS + "\nLet's think step by step.", "x", ("red", "blue"), True))
        == "choice, with rationale"
    )
    assert [beginning_of(pair) for pair in rows] == [("what", "is"), ("q", ""), ("q", ""), ("谁是", "看守")]


def corpus() -> list[Chain]:
    pairs = [
        Pair("Who kept it?", "Ingrid Dahl"),
        Pair("Who kept it, then?", "A man named Olsen"),
        Pair(HOSTILE, "Yes"),
        Pair("Which?" + OPTIONS, "red", ("red", "blue")),
        Pair("Why so?\nLet's think step by step.", "So.\nTherefore, the answer is red", rationale=True),
    ]
    texts = [AugmentedText(f"d{i}", TEXT, tuple(pairs[: i % 6])) for i in range(17)]
    return [Chain(f"c{i}", tuple(texts[2 * i : 2 * i + 2])) for i in range(9)]


@pytest.fixture
def chains_path(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "chains.jsonl", [chain.to_json() for chain in corpus()])
    return tmp_path / "chains.jsonl"


def test_counts_are_those_of_a_naive_loop(chains_path: Path):
    def length(text: str) -> int:
        return len(text.split())

    found = count_pairs(chains_path, str.split)
    texts = [text for chain in corpus() for text in chain.texts]
    pairs = [pair for text in texts for pair in text.pairs]
    assert (found.unit, found.chains, found.texts, found.pairs) == ("tokens", 9, 17, len(pairs))
    assert found.pairs_of_text == Counter(len(text.pairs) for text in texts)
    assert found.texts_of_chain == Counter(len(chain.texts) for chain in corpus())
    assert found.pair_lengths == Counter(length(pair.question) + length(pair.answer) for pair in pairs)
    assert found.answer_lengths == Counter(length(pair.answer) for pair in pairs)
    assert found.kinds == Counter(kind_of(pair) for pair in pairs)
    assert found.categories == Counter(category_of(pair) for pair in pairs)
    assert found.beginnings == Counter(beginning_of(pair) for pair in pairs)
    plain = [pair for pair in pairs if not pair.options and not pair.rationale and pair.answer != "Yes"]
    good = sum(grounding(pair.answer, TEXT) >= 0.5 for pair in plain)
    expected = {"grounded": good, "not grounded": len(plain) - good, "not asked": len(pairs) - len(plain)}
    assert found.grounded == expected
    assert count_pairs(chains_path).unit == "words"


def test_rare_beginnings_are_forgotten_by_count_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pairs_report, "MOST_BEGINNINGS", 10)
    figures = PairFigures("words", 0.5)
    pairs = [Pair(f"What is{i}?", "x") for i in range(25)] + [Pair("What is it?", "x")] * 9
    for pair in pairs:
        figures.add(AugmentedText("d", TEXT, (pair,)), [(2, 1)])
    assert len(figures.beginnings) <= 11
    assert figures.beginnings.total() + figures.forgotten == len(pairs) == 34
    assert figures.beginnings["what", "it"] == 0 and figures.beginnings["what", "is"] >= 8


@given(st.dictionaries(st.integers(0, 5000), st.integers(1, 50), max_size=40), st.integers(1, 40))
def test_a_histogram_loses_nothing(counts: dict[int, int], most: int):
    bars = histogram(counts, most)
    assert sum(number for _, number in bars) == sum(counts.values())
    assert len(bars) <= most + 1
    for name, number in bars:
        first, _, last = name.removesuffix("+").partition("-")
        end = float("inf") if name.endswith("+") else int(last or first)
        assert number == sum(count for value, count in counts.items() if int(first) <= value <= end)


WORD = st.sampled_from(["", "a", "b", "c", "d"])


@given(st.dictionaries(st.tuples(WORD, WORD), st.integers(1, 9)), st.integers(1, 3), st.integers(1, 3))
def test_rings_lose_nothing(counts: dict[tuple[str, str], int], most: int, parts: int):
    rings = wedges(counts, most, parts)
    assert sum(wedge.count for wedge in rings) == sum(counts.values())
    assert all(sum(count for _, count in wedge.parts) == wedge.count for wedge in rings)
    assert len(rings) <= most + 1 and all(len(wedge.parts) <= parts + 1 for wedge in rings)


class Addresses(HTMLParser):
    """What a page asks for, or leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.tags: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.tags[tag] += 1
        self.found += [
            (name, value) for name, value in attrs if name in ("src", "href", "srcset", "xlink:href", "action")
        ]


def page_of(chains_path: Path) -> str:
    out = chains_path.with_name("page.html")
    assert write_page(chains_path, out, PairsReportSettings()) is None
    return out.read_text(encoding="utf-8")


def test_the_page_shows_the_counts_and_needs_nothing_else(chains_path: Path, tmp_path: Path):
    drops = {"form": {}, "grounding": {"not_grounded": 12, "answer_is_question": 3}}
    write_json(tmp_path / "chains.jsonl.summary.json", {"in": 0, "kept": 0, "dropped": drops})
    page = page_of(chains_path)
    figures = count_pairs(chains_path)
    parser = Addresses()
    parser.feed(page)
    assert all(value.startswith(("#", "data:text/csv")) for _, value in parser.found)
    assert not {"img", "link", "iframe", "object"} & set(parser.tags)
    assert parser.tags["script"] == 1  # ours, not the question's
    assert "url(http" not in page and "@import" not in page
    words = unescape(re.sub(r"<[^>]+>", " ", page))
    assert "49" not in words.partition("What is <script>")[2][:80]
    sheets = {unquote(value.partition(",")[2]) for _, value in parser.found if value.startswith("data:")}
    for name, counts in (("category", figures.categories), ("kind", figures.kinds)):
        (sheet,) = (sheet for sheet in sheets if sheet.startswith(f"{name},pairs\r\n"))
        rows = dict(line.rsplit(",", 1) for line in sheet.splitlines()[1:])
        assert {key.strip('"'): int(number) for key, number in rows.items() if int(number)} == dict(counts)
    assert f"dropped {15}" in words and "answer_is_question" in words
    assert f"{figures.pairs:,} pairs about 17 texts" in words


def test_a_page_of_nothing_and_of_a_damaged_summary(tmp_path: Path):
    write_jsonl(tmp_path / "chains.jsonl", [])
    assert "0 pairs" in page_of(tmp_path / "chains.jsonl")
    assert read_drops(tmp_path / "chains.jsonl") is None
    (tmp_path / "chains.jsonl.summary.json").write_text("[]")
    with pytest.raises(UserError, match="not a summary"):
        read_drops(tmp_path / "chains.jsonl")
