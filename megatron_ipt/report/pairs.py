"""Counts of pairs -> the head and the sections of their page.  Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from data_prep.pairs_report import KINDS, PairFigures
from data_prep.pairs_report.model_categories import ModelCategories
from megatron_ipt.report import model_categories
from megatron_ipt.report.bars import Bars, Sunburst, counts_link, histogram, wedges
from megatron_ipt.report.parts import Head, Section, Tile
from megatron_ipt.report.preparation import clip
from megatron_ipt.report.tables import Table, count, percent, share_of, table, words

MOST_BARS = 36
FIRST_WORDS, SECOND_WORDS = 14, 6
# Of the table of beginnings.
MOST_ROWS = 40
MAX_EXAMPLE_CHARACTERS = 90


def head(figures: PairFigures, name: str, date: str, model: ModelCategories | None) -> Head:
    asked = figures.grounded["grounded"] + figures.grounded["not grounded"]
    grounded = share_of(figures.grounded["grounded"], asked)
    told = "told by the wording" if model is None else f"a model agrees on {percent(model.agreement).text}"
    tiles = (
        Tile("pairs", f"{figures.pairs:,}", f"{_mean(figures.pairs_of_text):.1f} a text"),
        Tile("texts", f"{figures.texts:,}", f"in {figures.chains:,} chains"),
        Tile(
            f"{figures.unit} a pair", f"{_mean(figures.pair_lengths):.1f}", f"median {_median(figures.pair_lengths):,}"
        ),
        Tile("grounded", percent(grounded).text, f"of {asked:,} answers that should be"),
        Tile("task categories", f"{len(figures.categories):,}", told),
    )
    summary = (
        f"{figures.pairs:,} pairs about {figures.texts:,} texts: what they ask, how long they are, and how many of "
        "their answers stand in their text."
    )
    return Head(name, date, summary, tiles)


def sections(
    figures: PairFigures, drops: Mapping[str, Mapping[str, int]] | None, model: ModelCategories | None
) -> list[Section]:
    if not figures.pairs:
        return [_dropped(figures, drops)] if drops is not None else []
    found = [_amounts(figures), _kinds(figures), _categories(figures)]
    if model is not None:
        told, tables = model_categories.sentences(model), model_categories.tables(model)
        found.append(Section("model-categories", "Task categories by a model", told, tables=tables))
    found += [_beginnings(figures), _grounding(figures)]
    return [*found, _dropped(figures, drops)] if drops is not None else found


def _amounts(figures: PairFigures) -> Section:
    unit = figures.unit
    sentence = (
        f"A text has {_mean(figures.pairs_of_text):.1f} pairs in the mean, a chain {_mean(figures.texts_of_chain):.1f} "
        f"texts; a pair has {_mean(figures.pair_lengths):.1f} {unit}, its answer {_mean(figures.answer_lengths):.1f}. "
        "In each figure the last bar holds all that is longer, where its name ends in a plus sign."
    )
    plots = (
        _histogram("pairs-a-text", "Pairs a text", "pairs", "texts", figures.pairs_of_text),
        _histogram(
            "pair-length", f"Length of a pair, question and answer [{unit}]", unit, "pairs", figures.pair_lengths
        ),
        _histogram("answer-length", f"Length of an answer [{unit}]", unit, "pairs", figures.answer_lengths, large=True),
    )
    rows = [
        (words(name), *(count(_percentile(lengths, share)) for share in (0, 0.1, 0.5, 0.9, 0.99, 1)))
        for name, lengths in (
            ("pairs a text", figures.pairs_of_text),
            ("texts a chain", figures.texts_of_chain),
            (f"{unit} a pair", figures.pair_lengths),
            (f"{unit} an answer", figures.answer_lengths),
        )
    ]
    columns = "of, least, 10 %:p10, median, 90 %:p90, 99 %:p99, most"
    return Section("amounts", "How much", (sentence,), plots, (table("lengths", "Percentiles", columns, rows),))


def _kinds(figures: PairFigures) -> Section:
    rows = tuple((kind, figures.kinds[kind]) for kind in KINDS)
    bars = Bars(
        "kinds",
        "Kinds of pairs: an answer in free words or a choice of options, each with or without a rationale",
        "Bar chart. " + "; ".join(f"{kind}: {number:,}" for kind, number in rows) + ".",
        "pairs",
        "",
        rows,
        counts_link(("kind", "pairs"), rows),
        lying=True,
        large=True,
    )
    tables: tuple[Table, ...] = ()
    if len(figures.languages) > 1:
        tables = (_shares("languages", "Languages of the texts", "language, texts, share", figures.languages),)
    return Section("kinds", "Kinds", (), (bars,), tables)


def _categories(figures: PairFigures) -> Section:
    rows = tuple(figures.categories.most_common())
    sentence = (
        "What a question asks for, told by rules over its wording (English; the commonest wordings of German and "
        "Chinese). A first guess: a rule reads words, not sense."
    )
    bars = Bars(
        "categories",
        f"{len(rows)} task categories that are met",
        "Bar chart. " + "; ".join(f"{name}: {number:,}" for name, number in rows) + ".",
        "pairs",
        "",
        rows,
        counts_link(("category", "pairs"), rows),
        lying=True,
        large=True,
    )
    examples = [
        (
            words(name),
            count(number),
            words(clip(figures.examples[name].question, MAX_EXAMPLE_CHARACTERS)),
            words(clip(figures.examples[name].answer, MAX_EXAMPLE_CHARACTERS)),
        )
        for name, number in rows
    ]
    columns = "category, pairs, first question of it:question, its answer:answer"
    found = table("category-examples", "An example of each", columns, examples)
    return Section("categories", "Task categories", (sentence,), (bars,), (found,))


def _beginnings(figures: PairFigures) -> Section:
    rings = wedges(figures.beginnings, FIRST_WORDS, SECOND_WORDS)
    firsts: Counter[str] = Counter()
    for (first, _), number in figures.beginnings.items():
        firsts[first] += number
    sentence = (
        f"Questions begin with {len(firsts):,} different words, and with {len(figures.beginnings):,} different pairs "
        "of words. Inner ring: the first word; outer ring: the second, of the commonest."
    )
    if figures.forgotten:
        sentence += f" {figures.forgotten:,} rare beginnings were forgotten on the way, to bound memory."
    rows = [
        (words(first), words(second), count(number), percent(share_of(number, figures.pairs)))
        for (first, second), number in sorted(figures.beginnings.items(), key=lambda item: (-item[1], item[0]))[
            :MOST_ROWS
        ]
    ]
    told = ", ".join(f"{wedge.name or 'others'} {wedge.count:,}" for wedge in rings)
    link = counts_link(
        ("beginning", "questions"), [(" ".join(pair), n) for pair, n in figures.beginnings.most_common()]
    )
    plot = Sunburst("first-words", "The first two words of the questions", f"Two rings. {told}.", rings, link)
    found = table("beginnings", "The commonest beginnings", "first word, second word, questions, share", rows)
    return Section("first-words", "How questions begin", (sentence,), (plot,), (found,))


def _grounding(figures: PairFigures) -> Section:
    sentence = (
        f"An answer is grounded when {percent(figures.min_grounding).text} of its content words stand in its text or "
        "more. Verdicts (yes, no), bare numbers, choices and rationales are not asked to be."
    )
    found = _shares("grounded", "Answers", "answers are:state, pairs, share", figures.grounded)
    return Section("grounding", "Grounding", (sentence,), tables=(found,))


def _dropped(figures: PairFigures, drops: Mapping[str, Mapping[str, int]] | None) -> Section:
    """What the summary beside the chains says of the pairs that are not among them."""
    rows = [(check, reason, number) for check, reasons in (drops or {}).items() for reason, number in reasons.items()]
    lost = sum(number for *_, number in rows)
    sentence = f"The checks let {figures.pairs:,} of {figures.pairs + lost:,} pairs pass and dropped {lost:,}."
    cells = [
        (words(check), words(reason), count(number), percent(share_of(number, figures.pairs + lost)))
        for check, reason, number in rows
    ]
    tables = (table("drops", "Why pairs went", "check, reason, pairs, share of all:share", cells),) if cells else ()
    return Section("drops", "Dropped by the checks", (sentence,), tables=tables)


def _shares(anchor: str, caption: str, columns: str, counts: Counter[str]) -> Table:
    rows = [
        (words(name), count(number), percent(share_of(number, counts.total()))) for name, number in counts.most_common()
    ]
    return table(anchor, caption, columns, rows)


def _histogram(anchor: str, caption: str, unit: str, what: str, counts: Counter[int], large: bool = False) -> Bars:
    rows = histogram(counts, MOST_BARS if large else MOST_BARS // 2)
    alt = f"Histogram. {caption}: median {_median(counts):,}, mean {_mean(counts):.1f}, at most {max(counts):,}."
    return Bars(anchor, caption, alt, unit, what, rows, counts_link((unit, what), sorted(counts.items())), large=large)


def _mean(counts: Counter[int]) -> float:
    return sum(value * number for value, number in counts.items()) / (counts.total() or 1)


def _median(counts: Counter[int]) -> int:
    return _percentile(counts, 0.5)


def _percentile(counts: Counter[int], share: float) -> int:
    """The smallest value that at least so large a share of the counts does not exceed; 0 of none."""
    seen, wanted = 0, max(1, share * counts.total())
    for value in sorted(counts):
        seen += counts[value]
        if seen >= wanted:
            return value
    return 0
