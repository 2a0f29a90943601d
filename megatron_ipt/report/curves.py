"""The curves of a training run as plain data: smoothed, thinned, ready to be drawn.  Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_ipt.report.data import Training, TrainPoint, ValidationPoint
from megatron_ipt.report.tables import Value, csv_link

# More points than this are not told apart on a page, and each costs bytes.
MOST_POINTS = 600


@dataclass(frozen=True, slots=True)
class Series:
    """One curve; `style` is what it is, the colours are the drawing's."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: Literal["raw", "line", "validation", "domain", "general"]


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure: its curves, what a reader who does not see it is told, and its numbers as a CSV link."""

    anchor: str
    caption: str
    alt: str
    y_label: str
    series: tuple[Series, ...]
    link: str
    large: bool = False


def plots(training: Training, smoothing: float) -> tuple[Plot, ...]:
    """The loss, the learning rate and the gradient norm against tokens; none before the first logged step."""
    if not training.points:
        return ()
    kept = thin(len(training.points), MOST_POINTS)
    points = [training.points[index] for index in kept]
    smoothed = smooth([point.loss for point in training.points], smoothing)
    thinned = f" Every {kept.step:,}th logged step is shown." if kept.step > 1 else ""
    return (
        _loss(training, points, [smoothed[index] for index in kept], smoothing, thinned),
        _small("learning-rate", "Learning rate", points, [point.lr for point in points], thinned),
        _small("gradient-norm", "Gradient norm before clipping", points, [_norm(point) for point in points], thinned),
    )


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average that starts without bias: each is divided by 1 - weight**n, as in Adam (section 3).

    `weight`, in [0, 1), is what the past keeps at each step; 0 gives the values back.
    """
    average, remaining, smoothed = 0.0, 1.0, []
    for value in values:
        average = weight * average + (1 - weight) * value
        remaining *= weight
        smoothed.append(average / (1 - remaining))
    return smoothed


def thin(count: int, most: int) -> range:
    """Indices of at most `most` of `count` points: evenly spaced, counted from the last, which always stays."""
    stride = max(1, -(-count // most))
    return range((count - 1) % stride, count, stride) if count else range(0)


def interpolate(x: float, known_x: Sequence[float], known_y: Sequence[float]) -> float:
    """The broken line through (0, 0) and the known points, at `x`; its last piece goes on beyond the last point."""
    xs, ys = [0.0, *known_x], [0.0, *known_y]
    if len(xs) == 1:
        return 0.0
    right = min(bisect_right(xs, x), len(xs) - 1)
    slope = (ys[right] - ys[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + slope * (x - xs[right - 1])


def _loss(
    training: Training, points: Sequence[TrainPoint], smoothed: Sequence[float], smoothing: float, thinned: str
) -> Plot:
    tokens = [float(point.consumed_tokens) for point in points]
    iterations = [float(point.iteration) for point in training.points]
    consumed = [float(point.consumed_tokens) for point in training.points]
    series = [
        Series("training, each logged step", tokens, [point.loss for point in points], "raw"),
        Series("training, smoothed", tokens, smoothed, "line"),
    ]
    rows: list[list[Value]] = [
        ["train", point.iteration, point.consumed_tokens, point.loss, value, point.lr, point.grad_norm]
        for point, value in zip(points, smoothed, strict=True)
    ]
    for name, found in by_name(training.validation).items():
        at = [interpolate(point.iteration, iterations, consumed) for point in found]
        series.append(Series(f"validation, {name}", at, [point.loss for point in found], "validation"))
        rows += [
            [name, point.iteration, round(x), point.loss, None, None, None] for point, x in zip(found, at, strict=True)
        ]
    columns = ("series", "iteration", "consumed_tokens", "loss", "smoothed_loss", "lr", "grad_norm")
    caption = f"Loss against tokens trained. The past weighs {smoothing:g} in the smoothed curve.{thinned}"
    return Plot("loss", caption, _loss_alt(training), "loss [nats/token]", tuple(series), csv_link(columns, rows), True)


def _loss_alt(training: Training) -> str:
    first, last = training.points[0], training.points[-1]
    parts = [
        f"Training loss {first.loss:.4f} at step {first.iteration:,} and {last.loss:.4f} at step {last.iteration:,}"
    ]
    for name, found in by_name(training.validation).items():
        start, end = found[0], found[-1]
        parts.append(
            f"validation on {name} {start.loss:.4f} at step {start.iteration:,} "
            f"and {end.loss:.4f} at step {end.iteration:,}"
        )
    return "Line chart. " + "; ".join(parts) + " (nats per token)."


def _small(anchor: str, label: str, points: Sequence[TrainPoint], values: Sequence[float], thinned: str) -> Plot:
    tokens = [float(point.consumed_tokens) for point in points]
    known = [value for value in values if value == value]
    extent = f"from {min(known):.3g} to {max(known):.3g}, {known[-1]:.3g} at the end" if known else "not recorded"
    rows = [[point.iteration, point.consumed_tokens, value] for point, value in zip(points, values, strict=True)]
    link = csv_link(("iteration", "consumed_tokens", anchor.replace("-", "_")), rows)
    series = (Series(label, tokens, values, "line"),)
    return Plot(anchor, f"{label}.{thinned}", f"Line chart. {label}: {extent}.", label.lower(), series, link)


def _norm(point: TrainPoint) -> float:
    return float("nan") if point.grad_norm is None else point.grad_norm


def by_name(validation: Sequence[ValidationPoint]) -> dict[str, list[ValidationPoint]]:
    """The validations of each held-out set, in their order."""
    found: dict[str, list[ValidationPoint]] = {}
    for point in validation:
        found.setdefault(point.name, []).append(point)
    return found
