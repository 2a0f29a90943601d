"""Sentence ends of English, German and Chinese; characters stay whole; counts are few; other tools as oracles."""

# ruff: noqa: RUF001 - texts in other scripts

from __future__ import annotations

import nupunkt
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_prep.sentences import sentence_ends
from data_prep.splitting import split

# Hand-written; each line is sentences, and only sentences.
ENGLISH = [
    ["Dr. Smith went to the U.S. on Jan. 5. ", "He was tired. ", "See Fig. 3 for it. ", "The end came."],
    ["The price rose 3.5 percent, e.g. in Ohio. ", "Prices fell elsewhere, i.e. in Utah."],
    ["Mr. J. R. Brown Jr. arrived. ", "Mrs. Brown did not."],
    ["Smith et al. (2020) found it. ", "Others, cf. Jones vs. Lee, did not."],
    ["See Sec. 4.2 and No. 5 of the act. ", "It is clear."],
    ["Use Python 3.12 for it. ", "Visit example.com for more. ", "Thanks!"],
    ["He got his Ph.D. in 1990. ", "He then taught."],
    ["What happened? ", "Nobody knows! ", "It rained."],
]
GERMAN = [
    ["Das gilt z. B. für Hunde und Katzen. ", "Andere Tiere nicht."],
    ["Das gilt z.B. für Hunde. ", "Andere Tiere nicht."],
    ["Dr. Müller kam am 3. Oktober nach Berlin. ", "Er blieb bis zum 15. November."],
    ["Siehe Nr. 5 und Abs. 2 der Verordnung. ", "Das genügt."],
    ["Prof. Dr. h. c. Schmidt sprach. ", "Alle hörten zu."],
    ["Es kostet ca. 5,50 Euro, d. h. wenig. ", "Ich kaufe es."],
    ["Er sagte: „Ich komme nicht.“ ", "Dann ging er."],
    ["Er fragte: »Wer ist da?« ", "Niemand antwortete."],
    ["Die Firma Müller GmbH & Co. KG wuchs. ", "Sie hat 1.200 Mitarbeiter."],
    ["Das Treffen ist um 14.30 Uhr. ", "Kommen Sie pünktlich! ", "Bringen Sie u. a. Papier, Stifte usw. mit."],
    ["Sie wohnt in der Hauptstr. 12 in Köln. ", "Ihr Bruder wohnt in St. Gallen."],
    ["Vgl. dazu S. 25 ff. des Berichts. ", "Dort steht mehr."],
    ["Am 1. Januar 2020 trat das Gesetz in Kraft. ", "Es galt bis 31. Dezember 2021. ", "Seither gilt ein neues."],
    ["Bzgl. der Frage gibt es evtl. Probleme. ", "Wir prüfen das."],
]
CHINESE = [
    ["委员会在星期二开会，同意修桥。", "大家都很高兴！", "什么时候动工？", "明年春天。"],
    ["他说：“你好。”", "然后走了。"],
    ["真的吗？！", "是的……", "他笑了（大笑。）", "价格是1.5元；", "数量是3.14个。"],
    ["「今天下雨。」", "他說：『不去了！』", "於是大家回家。"],
    ["第一段没有句号\n", "第二段。 ", "完。"],
]


def sentences(text: str, language: str) -> list[str]:
    ends = list(sentence_ends(text, language))
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize(
    ("language", "parts"),
    [("en", case) for case in ENGLISH] + [("de", case) for case in GERMAN] + [("zh", case) for case in CHINESE],
)
def test_sentences_end_where_a_reader_says(language: str, parts: list[str]):
    assert sentences("".join(parts), language) == parts


@pytest.mark.parametrize("language", ["en", "de", "zh"])
def test_pieces_end_at_sentence_ends_in_each_language_as_it_is_told_or_found(language: str):
    cases = {"en": ENGLISH, "de": GERMAN, "zh": CHINESE}[language]
    parts = [part if part.endswith(("\n", " ")) or language == "zh" else part + " " for case in cases for part in case]
    text, limit = "".join(parts), max(map(len, parts)) + 5
    ends = {sum(map(len, parts[:count])) for count in range(len(parts) + 1)}
    for told in (language, None):
        pieces = split(text, limit, len, told)
        assert {end for _, end in pieces} <= ends
        assert all(end - start <= limit for start, end in pieces)


def test_a_long_chinese_sentence_is_cut_at_its_commas():
    text = "一只狐狸，跳过了一只懒狗、一只懒猫，然后回家睡觉去了。"
    assert [text[a:b] for a, b in split(text, 10, len)] == [
        "一只狐狸，",
        "跳过了一只懒狗、",
        "一只懒猫，",
        "然后回家睡觉去了。",
    ]


def test_english_sentences_are_as_nupunkt_says():
    """On plain prose, two libraries with nothing in common agree."""
    text = (
        "The committee met on Tuesday. It agreed to Mr. Hill's plan, which costs $3.5 million. Work starts in May! "
        * 40
    )
    theirs = [end for _, end in nupunkt.sent_spans(text)]
    assert [len(text[:end].rstrip()) for end in sentence_ends(text, "en")] == [
        len(text[:end].rstrip()) for end in theirs
    ]


def test_ends_do_not_depend_on_where_a_chunk_of_the_text_ends():
    sentence = "Dr. Müller kam am 3. Oktober mit z. B. Frau Dr. Schmidt nach Berlin. "
    for shift in range(0, 90, 7):
        text = "x" * shift + " " + sentence * 400
        assert len(sentence_ends(text, "de")) == 400


MIXED = "ab. \n!?é。，\u0301\u200d\U0001f469\U0001f3fd\U0001f1e9\U0001f1ea\r\uac00\u1100\u1161\u0e01\u0e33z"
ANY_TEXT = st.text(alphabet=st.sampled_from(MIXED), max_size=80) | st.text(max_size=80)


@settings(max_examples=300, deadline=None)
@given(
    ANY_TEXT,
    st.integers(1, 12),
    st.sampled_from(["en", "de", "zh", "und", "fr"]),
    st.booleans(),
    st.lists(st.integers(0, 90), max_size=30).map(sorted) | st.none(),
)
@example("\u1100\u1161 a", 1, "en", True, None)
def test_characters_that_fit_are_never_cut(
    text: str, limit: int, language: str, has_bound: bool, told: list[int] | None
):
    """Whatever is told of where tokens end.  Oracle: the regex library's grapheme clusters."""
    clusters = [match.span() for match in regex.finditer(r"\X", text)]
    bound = len if has_bound else None
    pieces = split(text, limit, len, language, most_tokens=bound, token_ends=lambda part: told)
    assert "".join(text[start:end] for start, end in pieces) == text
    assert all(0 < end - start <= limit for start, end in pieces)
    for _, end in pieces:
        cut = [(a, b) for a, b in clusters if a < end < b]
        assert all(b - a > limit for a, b in cut)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([part for case in ENGLISH + GERMAN for part in case]), max_size=30),
    st.integers(20, 900),
    st.booleans(),
)
def test_each_piece_reaches_as_far_as_it_can(parts: list[str], limit: int, has_ends: bool):
    """Oracle: the farthest sentence end that fits, of all of them tried one by one; some sentences are denser."""

    def token_ends(part: str) -> list[int]:
        return [end for end, character in enumerate(part, 1) for _ in range(10 if character == "e" else 1)]

    def count(text: str) -> int:
        return len(text) + 9 * text.count("e") + 3

    text = " ".join(part.strip() for part in parts)
    ends = list(sentence_ends(text, "de"))
    start = 0
    for begin, end in split(text, limit, count, "de", token_ends=token_ends if has_ends else None):
        assert begin == start
        fitting = [each for each in ends if start < each and count(text[start:each]) <= limit]
        if fitting:
            assert end == fitting[-1]
        start = end


def test_what_surely_fits_is_not_counted():
    def never(_: str) -> int:
        raise AssertionError("counted")

    assert split("A short text. Of two sentences.", 100, never, most_tokens=lambda text: len(text.encode())) == [
        (0, 31)
    ]


def test_a_text_that_fits_is_counted_and_nothing_else(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("data_prep.splitting.language_of", lambda _: pytest.fail("the language was asked for"))
    text = "A sentence. " * 60
    assert split(text, 400, lambda part: len(part) // 2) == [(0, len(text))]


def test_a_long_text_is_counted_about_twice():
    counted = 0

    def count(text: str) -> int:
        nonlocal counted
        counted += len(text)
        return len(regex.findall(r"\w+|[^\w\s]", text))

    text = " ".join(part.strip() for case in ENGLISH for part in case) * 200
    pieces = split(text, 300, count, "en")
    assert all(count(text[a:b]) <= 300 for a, b in pieces)
    counted = 0
    split(text, 300, count, "en")
    assert counted < 2.5 * len(text)


@pytest.mark.parametrize("unit", ["x", "a b ", "。", "\u0301", "'a. ", "\n", "你好，"])
def test_strange_text_takes_no_more_than_a_few_counts_of_each_character(unit: str):
    counted = 0

    def count(text: str) -> int:
        nonlocal counted
        counted += len(text)
        return len(text)

    text = unit * (20_000 // len(unit))
    assert "".join(text[a:b] for a, b in split(text, 500, count)) == text
    assert counted < 6 * len(text)
