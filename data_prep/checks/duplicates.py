"""Check 3, duplicates: a question twice about a text, a pair twice in the corpus, boilerplate questions."""

from __future__ import annotations

import re
import unicodedata
from array import array
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_prep.checks.contract import Judge
from data_prep.readers import read_chains
from data_prep.records import AugmentedText, Pair
from data_prep.settings import CheckSettings


def judge(settings: CheckSettings, chains_path: Path) -> Judge:
    """Reasons: question_of_many_texts (more than `max_question_repeats`; all of them go),
    question_repeated_in_text, pair_repeated_in_corpus (the first of them stays).

    Reads the chains once beforehand.  While it does it holds two hashes a pair, 16 bytes, and as much again to sort
    them; afterwards only those of questions over the limit and of pairs that are there more than once.
    """
    boilerplate, repeated = _read_ahead(chains_path, settings.max_question_repeats)
    repeats_met: set[int] = set()
    current: tuple[AugmentedText | None, set[str]] = (None, set())

    def reason(pair: Pair, text: AugmentedText) -> str | None:
        nonlocal current
        if current[0] is not text:
            current = (text, set())
        question = normalise(pair.question)
        if _among(boilerplate, _hash(question)):
            return "question_of_many_texts"
        if question in current[1]:
            return "question_repeated_in_text"
        current[1].add(question)
        whole = _pair_hash(question, pair)
        if whole in repeats_met:
            return "pair_repeated_in_corpus"
        if _among(repeated, whole):
            repeats_met.add(whole)
        return None

    return reason


def normalise(text: str) -> str:
    """Case, accents' encoding, punctuation and white space made equal."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def _read_ahead(chains_path: Path, most_texts: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Sorted hashes: of questions that more than `most_texts` texts ask, and of pairs that are met more than once."""
    questions, pairs = array("Q"), array("Q")
    for chain in read_chains(chains_path):
        for text in chain.texts:
            normalised = [normalise(pair.question) for pair in text.pairs]
            questions.extend({_hash(question) for question in normalised})
            pairs.extend(map(_pair_hash, normalised, text.pairs))
    return _more_often(questions, most_texts), _more_often(pairs, 1)


def _more_often(hashes: array[int], times: int) -> NDArray[np.uint64]:
    """Those that stand in `hashes` more than `times` times, each once, in order."""
    ordered = np.sort(np.frombuffer(hashes, np.uint64))
    starts = np.flatnonzero(np.diff(ordered, prepend=~ordered[:1]))  # where another value begins
    counts = np.diff(starts, append=len(ordered))
    return ordered[starts[counts > times]]


def _among(ordered: NDArray[np.uint64], value: int) -> bool:
    place = int(np.searchsorted(ordered, np.uint64(value)))
    return place < len(ordered) and int(ordered[place]) == value


def _pair_hash(question: str, pair: Pair) -> int:
    return _hash(question + "\x1f" + normalise(pair.answer))


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())
