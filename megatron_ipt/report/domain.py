"""Domain against general: what a run's sources and held-out sets did, beside each other.  Pure.

A source's loss is measured on what is trained on, at no cost; a held-out set's bits per byte say what was learned and
what was forgotten.  A source of kind `general` is general, any other one is of the domain.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_ipt.report.curves import MOST_POINTS, Plot, Series, by_name, interpolate, smooth, thin
from megatron_ipt.report.data import SourcePoint, Training
from megatron_ipt.report.tables import Cell, Table, Value, count, csv_link, decimal, signed, table, words

GENERAL = "general"
# More curves than this are not told apart; the table has every source.
MOST_CURVES = 8


def domain_plots(training: Training, smoothing: float) -> Iterator[Plot]:
    """The loss of each source, and bits per byte of each held-out set since the start, where there are two or more."""
    sources = _sources(training)
    if len(sources) > 1:
        yield _losses(sources, training, smoothing)
    sets = {name: points for name, points in by_name(training.validation).items() if len(points) > 1}
    if len(sets) > 1:
        yield _since_start(training)


def source_table(training: Training, smoothing: float) -> Iterator[Table]:
    """What each source gave so far; the losses are smoothed, since a step has few of a source's tokens."""
    rows: list[tuple[Cell, ...]] = []
    for name, points in _sources(training).items():
        last = points[-1][1]
        found = smooth([point.loss for _, point in points if point.loss is not None], smoothing)
        row = (words(name), words(last.kind), count(last.consumed_samples), count(last.consumed_tokens))
        first, now = (found[0], found[-1]) if found else (None, None)
        change = None if first is None or now is None else now - first
        rows.append((*row, decimal(last.epochs, 3), decimal(first), decimal(now), signed(change)))
    if rows:
        columns = (
            "source, kind, samples, tokens trained:tokens, epochs, loss at first:first_loss, loss at last:last_loss"
        )
        yield table("sources", "Sources while training", f"{columns}, change", rows)


def _sources(training: Training) -> dict[str, list[tuple[int, SourcePoint]]]:
    """(tokens trained by then, figures) of each source at every logged step."""
    found: dict[str, list[tuple[int, SourcePoint]]] = {}
    for point in training.points:
        for source in point.sources:
            found.setdefault(source.name, []).append((point.consumed_tokens, source))
    return found


def _losses(sources: dict[str, list[tuple[int, SourcePoint]]], training: Training, smoothing: float) -> Plot:
    largest = sorted(sources, key=lambda name: -sources[name][-1][1].consumed_tokens)[:MOST_CURVES]
    series, rows = [], list[list[Value]]()
    for name in [name for name in sources if name in largest]:
        points = [(x, source) for x, source in sources[name] if source.loss is not None]
        values = smooth([source.loss for _, source in points if source.loss is not None], smoothing)
        kept = thin(len(points), MOST_POINTS)
        kind = sources[name][-1][1].kind
        style = "general" if kind == GENERAL else "domain"
        xs, ys = [float(points[index][0]) for index in kept], [values[index] for index in kept]
        label = name if name == kind else f"{name} ({kind})"
        series.append(Series(label, xs, ys, style))  # type: ignore[arg-type]
        rows += [
            [name, kind, points[index][0], points[index][1].loss, values[index], points[index][1].epochs]
            for index in kept
        ]
    some = "" if len(series) == len(sources) else f" The {len(series)} of {len(sources)} sources with the most tokens."
    caption = f"Domain against general: training loss of each source, smoothed ({smoothing:g} of the past).{some}"
    ends = [f"{line.name} {line.y[0]:.4f} at first and {line.y[-1]:.4f} at last" for line in series if line.y]
    alt = f"Line chart. Training loss by source: {'; '.join(ends)} (nats per token)."
    columns = ("source", "kind", "consumed_tokens", "loss", "smoothed_loss", "epochs")
    link = csv_link(columns, rows)
    return Plot("domain-against-general", caption, alt, "loss [nats/token]", tuple(series), link, True)


def _since_start(training: Training) -> Plot:
    """Changes, since sets of unlike text have unlike costs a byte."""
    iterations = [float(point.iteration) for point in training.points]
    consumed = [float(point.consumed_tokens) for point in training.points]
    series, rows, ends = list[Series](), list[list[Value]](), []
    for name, points in by_name(training.validation).items():
        xs = [interpolate(point.iteration, iterations, consumed) for point in points]
        ys = [point.bits_per_byte - points[0].bits_per_byte for point in points]
        series.append(Series(name, xs, ys, "validation"))
        rows += [
            [name, point.iteration, round(x), point.bits_per_byte, y]
            for point, x, y in zip(points, xs, ys, strict=True)
        ]
        ends.append(f"{name} {signed(ys[-1]).text} from {points[0].bits_per_byte:.4f}")
    caption = "Held-out sets: bits per byte since the first validation; below zero is learned, above it forgotten."
    alt = f"Line chart. Change of bits per byte: {'; '.join(ends)}."
    columns = ("set", "iteration", "consumed_tokens", "bits_per_byte", "change")
    return Plot("held-out-change", caption, alt, "change [bits/byte]", tuple(series), csv_link(columns, rows), True)
