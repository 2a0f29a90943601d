"""Check 3, duplicates: a question twice about a text, a pair twice in the corpus, boilerplate questions."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from pathlib import Path

import xxhash

from data_prep.checks.contract import Judge
from data_prep.readers import read_chains
from data_prep.records import AugmentedText, Pair
from data_prep.settings import CheckSettings


def judge(settings: CheckSettings, chains_path: Path) -> Judge:
    """Reasons: question_of_many_texts (more than `max_question_repeats`; all of them go),
    question_repeated_in_text, pair_repeated_in_corpus (the first of them stays).

    Reads the chains once beforehand to count questions; keeps a 64-bit hash a question and a pair.
    """
    texts_of_question = _count_questions(chains_path)
    pairs_met: set[int] = set()
    current: tuple[AugmentedText | None, set[str]] = (None, set())

    def reason(pair: Pair, text: AugmentedText) -> str | None:
        nonlocal current
        if current[0] is not text:
            current = (text, set())
        question = normalise(pair.question)
        whole = _hash(question + "\x1f" + normalise(pair.answer))
        if texts_of_question[_hash(question)] > settings.max_question_repeats:
            return "question_of_many_texts"
        if question in current[1]:
            return "question_repeated_in_text"
        current[1].add(question)
        if whole in pairs_met:
            return "pair_repeated_in_corpus"
        pairs_met.add(whole)
        return None

    return reason


def normalise(text: str) -> str:
    """Case, accents' encoding, punctuation and white space made equal."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def _count_questions(chains_path: Path) -> Counter[int]:
    """Texts that ask each question, by the question's hash."""
    counts: Counter[int] = Counter()
    for chain in read_chains(chains_path):
        for text in chain.texts:
            counts.update({_hash(normalise(pair.question)) for pair in text.pairs})
    return counts


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())
