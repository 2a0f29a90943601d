"""The page of pairs shows what its figures are: each number on it is counted here from the chains, without our code."""

from __future__ import annotations

import csv
import re
from collections import Counter
from html import unescape
from statistics import fmean, median_low
from urllib.parse import unquote

import pytest

from data_prep.readers import write_jsonl
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import PairsReportSettings
from megatron_ipt.report import pairs as write_page

TEXT = "The lighthouse at Skarsund was built in 1874. Its keeper was Ingrid Dahl, who lived there for thirty years."
GROUNDED, NOT, NOT_ASKED = "grounded", "not grounded", "not asked"
PAIRS = [
    ("Who was its keeper?", "Ingrid Dahl", GROUNDED),
    ("Who was it that lived there?", "The keeper, Ingrid Dahl", GROUNDED),
    ("Who built it?", "A man named Olsen from Bergen", NOT),
    ("What stands at Skarsund?", "A lighthouse", GROUNDED),
    ("What is painted red?", "Some boats and a shed, by the children of Bergen", NOT),
    ("Is it old?", "Yes", NOT_ASKED),
    ("When was it built?", "1874", NOT_ASKED),
]
"""Question, answer, and whether a reader finds the answer in TEXT; verdicts and numbers alone are not looked for."""


@pytest.fixture(scope="module")
def asked() -> list[list[tuple[str, str, str]]]:
    """The pairs of each of 25 texts, none to five."""
    return [[PAIRS[(text + pair * pair) % 7] for pair in range(text % 6)] for text in range(25)]


@pytest.fixture(scope="module")
def page(asked: list[list[tuple[str, str, str]]], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    texts = [
        AugmentedText(f"d{number}", TEXT, tuple(Pair(question, answer) for question, answer, _ in pairs))
        for number, pairs in enumerate(asked)
    ]
    chains = [Chain(f"c{start}", tuple(texts[start : start + 3])) for start in range(0, len(texts), 3)]
    write_jsonl(folder / "chains.jsonl", [chain.to_json() for chain in chains])
    write_page(folder / "chains.jsonl", folder / "page.html", PairsReportSettings(), str.split)
    return (folder / "page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pairs(asked: list[list[tuple[str, str, str]]]) -> list[tuple[str, str, str]]:
    return [pair for text in asked for pair in text]


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', page, re.S)
    assert found is not None
    return found[0]


def figure(page: str, caption: str) -> str:
    """The drawing above that caption."""
    found = [each for each in re.findall(r"<figure.*?</figure>", page, re.S) if f"<figcaption>{caption}" in each]
    assert len(found) == 1 and "<svg" in found[0]
    return str(found[0])


def tile(page: str, name: str) -> tuple[str, str]:
    """The number of a tile, and what stands below it."""
    found = re.search(rf'<dt>{name}</dt><dd class="number">(.*?)</dd><dd class="detail">(.*?)</dd>', page)
    assert found is not None
    return found[1], found[2]


def rows(part: str, caption: str) -> dict[str, list[str]]:
    """The cells of the table of that caption, by the first of their row."""
    (table,) = (each for each in re.findall(r"<table.*?</table>", part, re.S) if f"<caption>{caption} " in each)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr>.*?</tr>", table, re.S)]
    return {name: found for name, *found in cells[1:]}


def sheet(figure: str) -> dict[str, int]:
    """The CSV behind a figure."""
    found = re.search(r'href="data:text/csv;charset=utf-8,([^"]*)"', figure)
    assert found is not None
    return {name.strip(): int(number) for name, number in list(csv.reader(unquote(found[1]).splitlines()))[1:]}


def writing(figure: str) -> list[str]:
    return [unescape(each) for each in re.findall(r"<text[^>]*>(.*?)</text>", figure, re.S)]


def bars(figure: str) -> list[float]:
    """Heights of the bars, the highest is 1."""
    clipped = re.findall(r'<path d="([^"]*)" clip-path=[^>]*style="fill: (?!none)', figure)
    edges = [[float(number) for number in re.findall(r"-?[\d.]+", path)[1::2]] for path in clipped]
    heights = [max(each) - min(each) for each in edges]
    return [height / max(heights) for height in heights]


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


@pytest.mark.parametrize("of", ["pair", "answer"])
def test_tokens_of_a_pair_and_of_its_answer(page: str, pairs: list[tuple[str, str, str]], of: str):
    lengths = [len(answer.split()) + (len(question.split()) if of == "pair" else 0) for question, answer, _ in pairs]
    caption = {"pair": "Length of a pair, question and answer", "answer": "Length of an answer"}[of]
    found = figure(section(page, "amounts"), rf"{caption} [tokens]")
    mean, median = f"{fmean(lengths):.1f}", median_low(lengths)
    assert f"median {median}, mean {mean}, at most {max(lengths)}." in found
    counts = Counter(lengths)
    assert sheet(found) == {str(length): number for length, number in counts.items()}
    drawn = [counts[length] for length in range(min(lengths), max(lengths) + 1)]
    assert bars(found) == pytest.approx([number / max(drawn) for number in drawn], abs=1e-4)
    article = {"pair": "a pair", "answer": "an answer"}[of]
    cells = rows(section(page, "amounts"), "Percentiles")[f"tokens {article}"]
    assert [cells[place] for place in (0, 2, 5)] == [str(min(lengths)), str(median), str(max(lengths))]
    words = {"pair": f"a pair has {mean} tokens", "answer": f"its answer {mean}."}[of]
    assert words in section(page, "amounts")
    if of == "pair":
        assert tile(page, "tokens a pair") == (mean, f"median {median}")


def test_pairs_a_text(page: str, asked: list[list[tuple[str, str, str]]], pairs: list[tuple[str, str, str]]):
    found = figure(section(page, "amounts"), "Pairs a text")
    counts = Counter(map(len, asked))
    assert sheet(found) == {str(number): texts for number, texts in counts.items()}
    assert bars(found) == pytest.approx([counts[number] / max(counts.values()) for number in range(6)], abs=1e-4)
    assert tile(page, "pairs") == (str(len(pairs)), f"{len(pairs) / len(asked):.1f} a text")


def test_the_tree_of_first_words(page: str, pairs: list[tuple[str, str, str]]):
    part = section(page, "first-words")
    found = figure(part, "The first two words of the questions")
    beginnings = Counter(" ".join(question.lower().rstrip("?").split()[:2]) for question, _, _ in pairs)
    firsts = Counter(question.split()[0].lower() for question, _, _ in pairs)
    assert set(firsts) == {"who", "what", "is", "when"} and beginnings["who was"] > beginnings["who built"] > 0
    assert sheet(found) == beginnings
    told = re.search(r'aria-label="Two rings\. (.*?)\."', found)
    assert told is not None
    assert dict(each.rsplit(" ", 1) for each in told[1].split(", ")) == {
        word: str(number) for word, number in firsts.items()
    }
    seconds = [beginning.split()[1] for beginning in beginnings]
    assert sorted(writing(found)) == sorted([*firsts, *seconds, str(len(pairs)), "questions"])
    wedges = re.findall(r'<path [^>]*clip-path=[^>]*style="fill: var\(--hue-\d\); ?(opacity)?', found)
    assert Counter(wedges) == {"": len(firsts), "opacity": len(beginnings)}
    assert f"with {len(firsts)} different words, and with {len(beginnings)} different pairs of words" in part
    cells = re.findall(r'<tr>\s*<th scope="row"[^>]*>(\w+)</th>\s*<td[^>]*>(\w+)</td>\s*<td[^>]*>(\d+)</td>', part)
    assert {f"{first} {second}": int(number) for first, second, number in cells} == beginnings


def test_the_share_of_answers_that_are_grounded(page: str, pairs: list[tuple[str, str, str]]):
    counts = Counter(state for *_, state in pairs)
    assert min(counts[state] for state in (GROUNDED, NOT, NOT_ASKED)) > 0
    asked = counts[GROUNDED] + counts[NOT]
    assert tile(page, "grounded") == (percent(counts[GROUNDED], asked), f"of {asked} answers that should be")
    expected = {state: [str(number), percent(number, len(pairs))] for state, number in counts.items()}
    assert rows(section(page, "grounding"), "Answers") == expected
