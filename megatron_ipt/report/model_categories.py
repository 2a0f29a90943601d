"""What a model and the rules call the pairs of a sample -> the sentences and tables of their page.  Pure."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.pairs_report.model_categories import ModelCategories
from megatron_ipt.report.preparation import clip
from megatron_ipt.report.tables import Cell, Table, count, percent, share_of, table, words

MOST_DISAGREEMENTS = 30
MOST_EXAMPLE_CHARACTERS = 90


def agreement_of(model: ModelCategories) -> str:
    """The share, and where there is a larger population its interval."""
    told = percent(model.agreement).text
    if model.interval is None or model.population <= len(model.pairs):
        return told
    low, high = (percent(end).text.removesuffix(" %") for end in model.interval)
    return f"{told} (95 %: {low} to {high})"


def sentences(model: ModelCategories) -> tuple[str, ...]:
    name = model.engine.get("model", model.engine.get("engine"))
    of = f"pairs that the rules call {' or '.join(model.only)}" if model.only else "pairs, drawn from all alike"
    drawn = (
        f"A model, {name}, saw the names of the categories, and {len(model.pairs):,} of {model.population:,} {of}. "
        f"It named {model.named:,}; {model.unreadable.total():,} of its replies were no name, and "
        f"{model.failed.total():,} calls failed."
    )
    if not model.named:
        return (drawn,)
    beyond = "" if model.kappa is None else f"; beyond chance (Cohen's kappa) {model.kappa:.2f}, where 1 is always"
    return drawn, (
        f"Of the pairs it named it calls {agreement_of(model)} as the rules do{beyond}. Where a row's last share is "
        "low, read its pairs before that rule, or this model, is trusted."
    )


def tables(model: ModelCategories) -> tuple[Table, ...]:
    """The two columns, where both part, and what was no name."""
    made = (
        table(
            "category-agreement",
            "Pairs of the sample by what the rules and the model call them",
            "category, rules, model, both, model agrees with the rules:model_agrees",
            _columns(model),
        ),
        table(
            "category-disagreements",
            "Where they part: the commonest",
            "rules, model, pairs, first question of it:question",
            _disagreements(model),
        ),
        table(
            "category-lost",
            "No name: the commonest replies and failures",
            "what, words, pairs",
            _lost(model),
        ),
    )
    return tuple(each for each in made if each.rows)


def _columns(model: ModelCategories) -> Iterator[tuple[Cell, ...]]:
    rules, named = model.column(0), model.column(1)
    for name in sorted(rules.keys() | named.keys(), key=lambda name: (-rules[name], -named[name], name)):
        both = model.confusion[name, name]
        yield words(name), count(rules[name]), count(named[name]), count(both), percent(share_of(both, rules[name]))


def _disagreements(model: ModelCategories) -> Iterator[tuple[Cell, ...]]:
    first: dict[tuple[str, str], str] = {}
    for each in model.pairs:
        if each.category is not None:
            first.setdefault((each.drawn.rules, each.category), each.drawn.pair.question)
    parted = [(names, number) for names, number in model.confusion.items() if names[0] != names[1]]
    for names, number in sorted(parted, key=lambda item: (-item[1], item[0]))[:MOST_DISAGREEMENTS]:
        question = words(clip(first[names], MOST_EXAMPLE_CHARACTERS))
        yield words(names[0]), words(names[1]), count(number), question


def _lost(model: ModelCategories) -> Iterator[tuple[Cell, ...]]:
    for what, counts in (("reply", model.unreadable), ("failure", model.failed)):
        for told, number in counts.most_common(MOST_DISAGREEMENTS):
            yield words(what), words(clip(told, 2 * MOST_EXAMPLE_CHARACTERS)), count(number)
