"""Long English, German and Chinese texts in pieces that fit by the count of the tokenizer's own library."""

# ruff: noqa: RUF001 - texts in other scripts

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest
from tokenizer_kinds import KINDS
from tokenizers_for_tests import llama3_like
from transformers import AutoTokenizer

from data_prep.fetch import fetch_model
from data_prep.records import Document
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.prompts import Prompter
from data_prep.synthesis.shard import cut
from data_prep.synthesis.wire import Wire, load_wire

SENTENCES = {
    "en": [
        "Dr. Smith measured {} sites in the U.S. on Jan. 5, and found 3.5 percent more lead than Brown et al. had. ",
        "What happened at site {}? ",
        "“Nobody knows,” she said of it! ",
        "The council then agreed to Mr. Hill's plan, see Fig. {}, which costs $2.5 million a year.\n",
        "It rained. ",
    ],
    "de": [
        "Dr. Müller kam am 3. Oktober mit z. B. {} größeren Kähnen über den Fluss nach Köln, d. h. ans Ziel. ",
        "Was geschah in der Hauptstr. {}? ",
        "„Niemand weiß es“, sagte sie! ",
        "Die Donaudampfschifffahrtsgesellschaft beförderte bis 1871 ca. {} Fässer, Kisten usw. nach Österreich.\n",
        "Es regnete. ",
    ],
    "zh": [
        "委员会在星期二开会，同意在第{}号河上修一座桥，价格是1.5亿元。",
        "第{}座桥什么时候动工？",
        "他说：“明年春天。”",
        "长江是亚洲第一长河，全长约{}公里，流经青海、西藏、四川、云南等十一个省级行政区。\n",
        "下雨了！",
    ],
}
"""One or more a sentence end; `{}` is a number."""

LONG_SENTENCE = "桥" * 700 + "。" + "Brücken" * 120 + ". "

Encode = Callable[[str], list[int]]


def hugging_face(model: Path) -> tuple[Path, Encode]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    return model, lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


def sentencepiece(folder: Path) -> tuple[Path, Encode]:
    kind = KINDS["sentencepiece_bpe"](folder)
    assert kind.encode is not None
    return kind.path, kind.encode


TOKENIZERS: dict[str, Callable[[Path], tuple[Path, Encode]]] = {
    "smollm2": lambda _: hugging_face(fetch_model("smollm2-135m-instruct")),
    "llama3_like": lambda folder: hugging_face(llama3_like(folder)),
    "sentencepiece": sentencepiece,
}
"""Where a tokenizer is, and its own library's ids of a text, without BOS and EOS."""


@pytest.fixture(params=TOKENIZERS, scope="module")
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Wire, Encode]:
    path, encode = TOKENIZERS[request.param](tmp_path_factory.mktemp("model"))
    return load_wire(path), encode


def sentences(language: str, count: int) -> list[str]:
    drawn = random.Random(count)
    return [drawn.choice(SENTENCES[language]).format(drawn.randrange(1, 10**5)) for _ in range(count)]


def pieces_of(wire: Wire, text: str, limit: int) -> list[tuple[str, list[int]]]:
    """The pieces of a document with what is asked of each; by their offsets they are the document."""
    prompter = Prompter(wire, SynthesizeSettings(max_new_tokens=50, max_model_len=4000, max_text_tokens=limit))
    found = list(cut(Document("d", text, "s"), prompter))
    assert [piece.start for piece in found] == [0, *(piece.end for piece in found[:-1])]
    assert found[-1].end == len(text) and "".join(piece.text for piece in found) == text
    assert all(text[piece.start : piece.end] == piece.text for piece in found)
    assert {(piece.document_id, piece.source) for piece in found} == {("d", "s")}
    return [(piece.text, list(prompter.prompt(piece, [], piece).request.prompt)) for piece in found]


@pytest.mark.parametrize("language", SENTENCES)
def test_pieces_hold_the_sentences_that_fit_by_the_tokenizers_own_count(tokenizer: tuple[Wire, Encode], language: str):
    """As many as fit, and no part of one; the ids that are asked are those of the tokenizer's library."""
    (wire, encode), parts, limit = tokenizer, sentences(language, 120), 200
    text, ends = "".join(parts), list(accumulate(map(len, parts)))
    found = pieces_of(wire, text, limit)
    (behind,) = {len(shown(encode, piece)) + 1 - len(prompt) for piece, prompt in found}
    end = 0
    for piece, prompt in found:
        begin, end = end, end + len(piece)
        assert end in ends and len(prompt) <= limit
        assert prompt[1:] == shown(encode, piece)[:-behind]
        if end < len(text):
            longer = text[begin : ends[ends.index(end) + 1]]
            assert 1 + len(shown(encode, longer)) - behind > limit
    assert len(found) > 10


def shown(encode: Encode, text: str) -> list[int]:
    """A text as it stands in an example, up to the tag of its first question."""
    return encode(f" <CON> {text} </CON>\n\n<QUE>")


def test_sentences_that_do_not_fit_are_cut_into_pieces_that_do(tokenizer: tuple[Wire, Encode]):
    wire, encode = tokenizer
    text = sentences("zh", 1)[0] + LONG_SENTENCE + "".join(sentences("de", 20))
    found = pieces_of(wire, text, 90)
    assert len(found) > 15
    assert all(len(encode(piece)) < len(prompt) <= 90 for piece, prompt in found)
