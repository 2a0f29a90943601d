"""ipt data report-pairs: what pairs there are in a file of chains, counted in one pass.

The page is laid out by megatron_ipt.report; these are its figures, and nothing here draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from data_prep.checks.grounding import can_be_grounded, grounding
from data_prep.checks.languages import is_unspaced, language_of, units
from data_prep.errors import UserError
from data_prep.pairs_report.categories import category_of
from data_prep.pairs_report.model_categories import ModelCategories
from data_prep.pairs_report.sample import Sample
from data_prep.readers import beside, read_chains
from data_prep.records import AugmentedText, Pair
from data_prep.settings import CheckSettings
from data_prep.synthesis.wire import split_question

__all__ = ["PairFigures", "count_pairs", "kind_of", "read_drops", "summary_of"]

KINDS = ("free", "free, with rationale", "choice", "choice, with rationale")
# Beginnings of questions that are told apart at once; the rarest go first, and are counted as forgotten.
MOST_BEGINNINGS = 200_000


@dataclass
class PairFigures:
    """Counts over a file of chains.  Lengths are in tokens with a tokenizer, else in words (`unit` says which).

    A length's counter has a key a length; `beginnings` a key (first word, second word) of the questions.  Each pair is
    offered to `sample`, where there is one.
    """

    unit: str
    min_grounding: float
    chains: int = 0
    texts: int = 0
    pairs: int = 0
    pairs_of_text: Counter[int] = field(default_factory=Counter)
    texts_of_chain: Counter[int] = field(default_factory=Counter)
    pair_lengths: Counter[int] = field(default_factory=Counter)
    answer_lengths: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Pair] = field(default_factory=dict)
    beginnings: Counter[tuple[str, str]] = field(default_factory=Counter)
    forgotten: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    grounded: Counter[str] = field(default_factory=Counter)
    sample: Sample | None = None

    def add(self, text: AugmentedText, lengths: Iterable[tuple[int, int]]) -> None:
        """Counts a text; `lengths` has (question, answer) of each of its pairs."""
        self.texts += 1
        self.pairs += len(text.pairs)
        self.pairs_of_text[len(text.pairs)] += 1
        self.languages[language_of(units(text.text)).name] += 1
        for pair, (question, answer) in zip(text.pairs, lengths, strict=True):
            self.pair_lengths[question + answer] += 1
            self.answer_lengths[answer] += 1
            self.kinds[kind_of(pair)] += 1
            category = category_of(pair)
            self.categories[category] += 1
            self.examples.setdefault(category, pair)
            if self.sample is not None:
                self.sample.offer(pair, text, category)
            self.grounded[self._grounding(pair, text)] += 1
            self._add_beginning(pair)

    def _grounding(self, pair: Pair, text: AugmentedText) -> str:
        if not can_be_grounded(pair):
            return "not asked"
        return "grounded" if grounding(pair.answer, text.text) >= self.min_grounding else "not grounded"

    def _add_beginning(self, pair: Pair) -> None:
        self.beginnings[beginning_of(pair)] += 1
        if len(self.beginnings) > MOST_BEGINNINGS:
            kept = Counter(dict(self.beginnings.most_common(MOST_BEGINNINGS // 2)))
            self.forgotten += self.beginnings.total() - kept.total()
            self.beginnings = kept


def count_pairs(
    chains_path: Path | str, encode: Callable[[str], Any] | None = None, sample: Sample | None = None
) -> PairFigures:
    """Counts the pairs of a file of chains.

    Args:
        encode: gives the tokens of a text; without it words are counted, and characters of scripts without spaces.
        sample: draws from the pairs as they pass.

    Raises:
        UserError: the chains cannot be read.
    """
    figures = PairFigures("tokens" if encode else "words", CheckSettings().min_grounding, sample=sample)
    measure = encode or units
    for chain in read_chains(chains_path):
        figures.chains += 1
        figures.texts_of_chain[len(chain.texts)] += 1
        for text in chain.texts:
            figures.add(text, [(len(measure(pair.question)), len(measure(pair.answer))) for pair in text.pairs])
    return figures


def kind_of(pair: Pair) -> str:
    """One of KINDS."""
    options = pair.options or split_question(pair.question)[1]
    return KINDS[2 * bool(options) + pair.rationale]


def beginning_of(pair: Pair) -> tuple[str, str]:
    """The first two words of the question, of Chinese the first two pairs of characters; empty where it ends before."""
    found = units(split_question(pair.question)[0][:200])
    if found and is_unspaced(found[0]):
        return "".join(found[:2]), "".join(found[2:4])
    first, second, *_ = [*found, "", ""]
    return first, second


def summary_of(figures: PairFigures, model: ModelCategories | None) -> dict[str, Any]:
    """The counts of the page for programs: categories by rules of all pairs, and what a model said where one did."""
    counts = {"chains": figures.chains, "texts": figures.texts, "pairs": figures.pairs, "unit": figures.unit}
    sums = {
        name: sum(length * number for length, number in lengths.items())
        for name, lengths in (("pair_length", figures.pair_lengths), ("answer_length", figures.answer_lengths))
    }
    tables = {
        name: dict(counter.most_common())
        for name, counter in (
            ("kinds", figures.kinds),
            ("categories", figures.categories),
            ("languages", figures.languages),
            ("grounded", figures.grounded),
        )
    }
    return {**counts, **sums, **tables, "model_categories": model.to_json() if model else None}


def read_drops(chains_path: Path | str) -> Mapping[str, Mapping[str, int]] | None:
    """What the checks dropped, by check and reason, where their summary stands beside the chains; None else.

    Raises:
        UserError: the summary is damaged.
    """
    path = beside(chains_path, "summary.json")
    if not path.exists():
        return None
    try:
        dropped = orjson.loads(path.read_bytes()).get("dropped")
    except (orjson.JSONDecodeError, AttributeError) as error:
        raise UserError(path, f"not a summary ({error})", "check the chains again") from error
    return dropped if isinstance(dropped, dict) else None
