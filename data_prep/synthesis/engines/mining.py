# ruff: noqa: RUF001 (Chinese has its own marks)
"""Pairs mined from a text by rules, without a model: the rule-based baseline.

What a text says of itself by its form is turned into questions that it answers: a title, a topic sentence, a
definition, a cause or an effect, a restatement, two statements joined by a connective, a sentence with a gap.  The idea
is that of regular-expression mining of reading-comprehension tasks (AdaptLLM, https://arxiv.org/abs/2309.09530,
section 2); patterns and wordings are our own, one file a language in `phrases/`.

Apart from the verdict of an inference, every answer stands in the text word for word (its first letter may be raised).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from data_prep.records import Pair
from data_prep.synthesis.wire import recognise

LANGUAGES = ("en", "de", "zh")
PAIRS_A_TEXT = 5
GAP = "____"

# Of a text this much decides its language [characters, words].
SAMPLE, SAMPLE_WORDS = 800, 80
# A language is told by its function words: two different ones at least, and this many for each word of the sample.
LEAST_FUNCTION_WORDS = 0.06
# What counts as a sentence worth asking about [characters; Chinese: a third].
SHORTEST, LONGEST = 30, 400
LONGEST_TITLE = 90
DEFINED_WITHIN = 80

_HAN, _KANA = re.compile("[\u4e00-\u9fff]"), re.compile("[\u3040-\u30ff]")
# Possessive throughout: what was passed over is never looked at again.
# It begins with a set of characters, which the search skips to.
_END = re.compile(r"[.!?\n](?:(?<=\n)\s*+|['\"”’»“)\]]*+\s++(?=[\"'“„«(\[]*+[A-ZÄÖÜÉ0-9]))")
_HAN_END = re.compile(r"[。！？\n](?:(?<=\n)\s*+|[”’」』）]*+\s*+)")
_WORD = re.compile(r"[^\W\d_]{5,30}+")
_CLAUSE = re.compile(r"[^，。！？；：、\s]{3,30}+(?=[，。])")
_QUOTES = "\"'”’»“)]」』）"
_STOPS = ".!?。！？"

# What is asked about, the answer, and the kind of connective between them.
Spot = tuple[str, str, str]
Asked = tuple[str, str]  # a question and its answer


@dataclass(frozen=True)
class Phrases:
    """What to look for in one language, compiled, and how to ask."""

    function_words: frozenset[str]
    abbreviations: frozenset[str]
    ordinal_dots: bool
    keep_lead: frozenset[str]
    spaced: bool
    lead: re.Pattern[str]
    lead_words: frozenset[str]
    infix: tuple[tuple[str, str, re.Pattern[str]], ...]
    definitions: tuple[tuple[frozenset[str], re.Pattern[str]], ...]
    not_terms: frozenset[str]
    questions: Mapping[str, Sequence[str]]
    verdicts: Mapping[str, str]


def mine(text: str, seed: int, limit: int = PAIRS_A_TEXT) -> list[Pair]:
    """At most `limit` pairs about a text, no question twice, as many kinds as there are; the same for the same seed.

    A text in another language than English, German or Chinese has none.  Time is linear in the text's length.
    """
    language = told_language(text)
    if language is None or limit < 1:
        return []
    phrases = load_phrases(language)
    title, sentences = _title(text), _sentences(text, phrases)
    if not any(sentences):
        return []
    rng = random.Random(seed)
    spots = _spots(sentences, phrases)
    if title:
        spots["title"] = [("", title, "title")]
    pairs: dict[str, Pair] = {}
    for question, answer in _asked(spots, [sentence for sentence in sentences if sentence], phrases, rng, limit):
        if question.casefold() not in pairs:
            pairs[question.casefold()] = recognise(question, answer)
            if len(pairs) == limit:
                break
    return list(pairs.values())


def told_language(text: str) -> str | None:
    """en, de or zh by script and function words; None for anything else."""
    sample = text[:SAMPLE]
    if not sample.isascii() and len(_HAN.findall(sample)) > len(sample) / 5:
        return None if len(_KANA.findall(sample)) > len(sample) / 20 else "zh"
    words = sample.lower().split(None, SAMPLE_WORDS)[:SAMPLE_WORDS]
    most, name = max((len(load_phrases(name).function_words.intersection(words)), name) for name in ("de", "en"))
    return name if most >= max(2, LEAST_FUNCTION_WORDS * len(words)) else None


@cache
def load_phrases(language: str) -> Phrases:
    """The file of a language, compiled."""
    path = Path(__file__).with_name("phrases") / f"{language}.yaml"
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    spaced = language != "zh"
    blank = r"\s+" if spaced else ""
    lead = "|".join(
        f"(?P<{kind}>{'|'.join(map(re.escape, sorted(words, key=len, reverse=True)))})"
        for kind, words in found["lead"].items()
    )
    patterns = [(kind, pattern) for kind, some in found["infix"].items() for pattern in some]
    return Phrases(
        function_words=frozenset(found["function_words"]),
        abbreviations=frozenset(found["abbreviations"]),
        ordinal_dots=found["ordinal_dots"],
        keep_lead=frozenset(found.get("keep_lead", ())),
        spaced=spaced,
        lead=re.compile(f"(?:{lead}){blank}"),
        lead_words=frozenset(word.split()[0] for words in found["lead"].values() for word in words),
        infix=tuple((kind, re.split(r"[(\\[?]", pattern)[0], re.compile(pattern)) for kind, pattern in patterns),
        definitions=tuple((frozenset(one.get("words", ())), re.compile(one["pattern"])) for one in found["definition"]),
        not_terms=frozenset(found["not_terms"]),
        questions=found["questions"],
        verdicts=found.get("verdicts", {}),
    )


def _title(text: str) -> str:
    """The first line, where it looks like a title over a text; else nothing."""
    line, _, rest = text[: 4 * LONGEST_TITLE].strip().partition("\n")
    title = line.strip(" \t\r#*=_")
    is_title = 2 <= len(title) <= LONGEST_TITLE and title[-1] not in _STOPS + ",;:" and title[-1] not in _QUOTES[:3]
    return title if is_title and len(rest.strip()) > len(title) else ""


def _sentences(text: str, phrases: Phrases) -> list[str]:
    """The sentences of a text in their order; one not worth asking about (too short or long, no end) is empty."""
    found, start = [], 0
    shortest = SHORTEST if phrases.spaced else SHORTEST // 3
    for match in (_END if phrases.spaced else _HAN_END).finditer(text):
        if text[match.start()] == "." and _abbreviated(text, match.start(), phrases):
            continue
        found.append(_worthy(text[start : match.end()], shortest))
        start = match.end()
    found.append(_worthy(text[start:], shortest))
    return found


def _abbreviated(text: str, dot: int, phrases: Phrases) -> bool:
    """Whether the dot belongs to an abbreviation, an initial or (in German) an ordinal number."""
    word = text[max(0, dot - 14) : dot].rpartition(" ")[2].lstrip("([\"'“„")
    if len(word) == 1 and word.isalpha():
        return True
    return word.lower() in phrases.abbreviations or (phrases.ordinal_dots and word.isdigit())


def _worthy(sentence: str, shortest: int) -> str:
    """The sentence if rules may ask about it, else an empty string."""
    sentence = sentence.strip()
    if not shortest <= len(sentence) <= LONGEST or "\n" in sentence or sentence[0].islower():
        return ""
    return sentence if sentence.rstrip(_QUOTES)[-1:] in _STOPS else ""


def _spots(sentences: Sequence[str], phrases: Phrases) -> dict[str, list[Spot]]:
    """What the sentences offer, by kind of question."""
    spots: dict[str, list[Spot]] = {}
    shortest = SHORTEST // 3 if phrases.spaced else SHORTEST // 8
    before = ""
    for sentence in sentences:
        if sentence:
            for kind, spot in _of_sentence(before, sentence, phrases):
                if min(len(spot[0]), len(spot[1])) >= (shortest if kind != "definition" else 2):
                    spots.setdefault(kind, []).append(spot)
        before = sentence
    return spots


def _of_sentence(before: str, sentence: str, phrases: Phrases) -> Iterator[tuple[str, Spot]]:
    """What one sentence offers, after the one before it.  Words are looked up before a pattern is tried."""
    words = sentence[:DEFINED_WITHIN].split()
    lead = phrases.lead.match(sentence) if not phrases.spaced or words[0] in phrases.lead_words else None
    if lead:
        kind, rest = lead.lastgroup or "", sentence[lead.end() :]
        if kind in phrases.questions:
            yield kind, (_without_lead(before, phrases), sentence if kind in phrases.keep_lead else rest, kind)
        if kind in phrases.verdicts:
            yield "inference", (_without_lead(before, phrases), rest, kind)
        return
    for kind, literal, pattern in phrases.infix:
        if literal in sentence and (infix := pattern.search(sentence)):
            yield kind, (sentence[: infix.start()], sentence[infix.end() :], kind)
            break
    for signs, pattern in phrases.definitions:
        if (not signs or not signs.isdisjoint(words)) and (found := pattern.match(sentence)):
            term = found["term"]
            if term.split()[0].lower() not in phrases.not_terms:
                yield "definition", (term, found["body"], "definition")
            return


def _without_lead(sentence: str, phrases: Phrases) -> str:
    """A sentence that stands by itself: without the connective that it may open with."""
    lead = phrases.lead.match(sentence)
    return _raised(sentence[lead.end() :]) if lead and not phrases.keep_lead else sentence


def _asked(
    spots: Mapping[str, list[Spot]], sentences: Sequence[str], phrases: Phrases, rng: random.Random, limit: int
) -> Iterator[Asked]:
    """Questions and answers, one of each kind before a second of any; what only some texts offer comes first."""
    special = list(spots)
    rng.shuffle(special)
    general = [kind for kind in _GENERAL if kind in phrases.questions]
    rng.shuffle(general)
    if "title" in spots or len(sentences) < 4:
        general.remove("summary")
    for turn in range(limit):
        for kind in special:
            if turn == 0:
                rng.shuffle(spots[kind])
            if turn < len(spots[kind]):
                yield _special(kind, spots[kind][turn], phrases, rng)
        for kind in general:
            asked = _GENERAL[kind](sentences, phrases, rng)
            if asked is not None and (turn == 0 or kind != "summary"):
                yield asked


def _special(kind: str, spot: Spot, phrases: Phrases, rng: random.Random) -> Asked:
    about, answer, connective = spot
    question = rng.choice(phrases.questions[kind])
    if kind == "inference":
        options = list(phrases.verdicts.values())
        rng.shuffle(options)
        stem = question.format(premise=_bare(about), hypothesis=_raised(_bare(answer)))
        listed = "".join(f"\n- {option}" for option in options)
        return f"{stem}\nOptions:{listed}", phrases.verdicts[connective]
    return question.format(statement=_bare(about), term=about.strip('“”„"')), _raised(answer.strip())


def _summary(sentences: Sequence[str], phrases: Phrases, rng: random.Random) -> Asked:
    """The first sentence of a text stands for its summary."""
    return rng.choice(phrases.questions["summary"]), sentences[0]


def _words(sentences: Sequence[str], phrases: Phrases, rng: random.Random) -> Asked | None:
    sentence = rng.choice(sentences)
    words = [word for word in dict.fromkeys(_WORD.findall(sentence)) if word.lower() not in phrases.function_words]
    if len(words) < 3:
        return None
    chosen = rng.sample(words, min(4, len(words)))
    return rng.choice(phrases.questions["words"]).format(words=", ".join(chosen)), sentence


def _completion(sentences: Sequence[str], phrases: Phrases, rng: random.Random) -> Asked | None:
    """A sentence cut at a blank (Chinese: a comma) past its middle."""
    sentence = rng.choice(sentences)
    mark = " " if phrases.spaced else "，"
    cut = sentence.find(mark, len(sentence) // 2)
    beginning, rest = sentence[: max(cut, 0)], sentence[cut + 1 :].strip()
    if not beginning.strip() or len(rest) < 4:
        return None
    return rng.choice(phrases.questions["completion"]).format(beginning=beginning), rest


def _cloze(sentences: Sequence[str], phrases: Phrases, rng: random.Random) -> Asked | None:
    """A sentence without one of its longer words (Chinese: one of its clauses)."""
    sentence = rng.choice(sentences)
    pattern = _WORD if phrases.spaced else _CLAUSE
    places = [match.span() for match in pattern.finditer(sentence)]
    if len(places) < 2:
        return None
    start, end = rng.choice(places)
    gapped = f"{sentence[:start]}{GAP}{sentence[end:]}"
    return rng.choice(phrases.questions["cloze"]).format(sentence=gapped), sentence[start:end]


_GENERAL: Mapping[str, Callable[[Sequence[str], Phrases, random.Random], Asked | None]] = {
    "summary": _summary,
    "words": _words,
    "completion": _completion,
    "cloze": _cloze,
}


def _bare(statement: str) -> str:
    """A statement without the mark that ends it, to stand inside a question."""
    return statement.strip().rstrip(_STOPS).rstrip(" ,，")


def _raised(text: str) -> str:
    """With a capital first letter."""
    return text[:1].upper() + text[1:]
