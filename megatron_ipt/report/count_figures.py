"""Draws figures of counts on matplotlib's axes, in the stand-in colours of figures.py."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.patches import Wedge as Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from megatron_ipt.report.bars import Bars, Sunburst

# Angles below which a name has no room in its wedge [degrees].
INNER_ROOM, OUTER_ROOM = 5.6, 3.6
INNER, MIDDLE, OUTER = 0.34, 0.72, 1.0


def draw_bars(axes: Axes, plot: Bars, colour: str, rule: str) -> None:
    places, counts = range(len(plot.rows)), [count for _, count in plot.rows]
    names = [name for name, _ in plot.rows]
    if plot.lying:
        axes.barh(places, counts, color=colour, height=0.72)
        axes.set_yticks(places, names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        whole = max(1, sum(counts))
        for place, count in zip(places, counts, strict=True):
            axes.annotate(
                f"{count:,} ({100 * count / whole:.1f} %)",
                (count, place),
                (4, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_xlim(0, 1.16 * max(counts, default=1) or 1)
    else:
        axes.bar(places, counts, color=colour, width=0.86)
        every = -(-len(names) // (18 if plot.large else 9))
        axes.set_xticks(places[::every], names[::every])
    count_axis = axes.xaxis if plot.lying else axes.yaxis
    count_axis.set_major_locator(MaxNLocator(5, integer=True))
    count_axis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="x" if plot.lying else "y", color=rule, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)


def draw_sunburst(axes: Axes, plot: Sunburst, hues: list[str], faint: str, page: str, ink: str) -> None:
    """The inner ring has the first words, the outer one the second; names stand where there is room for them."""
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_xlim(-1.7, 1.7)
    axes.set_ylim(-1.24, 1.24)
    whole = sum(wedge.count for wedge in plot.wedges)
    start = 90.0
    for number, wedge in enumerate(plot.wedges):
        span = 360 * wedge.count / whole
        colour = hues[number % len(hues)] if wedge.name else faint
        _ring(axes, MIDDLE, MIDDLE - INNER, start, span, colour, 1.0, page)
        if span >= INNER_ROOM:
            _name(axes, wedge.name or "others", (INNER + MIDDLE) / 2, start - span / 2, page if wedge.name else ink)
        for name, count in wedge.parts:
            part = 360 * count / whole
            _ring(axes, OUTER, OUTER - MIDDLE - 0.01, start, part, colour, 0.45 if name else 0.18, page)
            if part >= OUTER_ROOM and name:
                _outer_name(axes, name, start - part / 2, ink)
            start -= part
    axes.text(0, 0, f"{whole:,}\nquestions", ha="center", va="center", color=ink, fontsize=11)


def _ring(
    axes: Axes, radius: float, width: float, start: float, span: float, colour: str, alpha: float, edge: str
) -> None:
    """Clockwise from `start` [degrees]."""
    axes.add_patch(
        Patch(
            (0, 0), radius, start - span, start, width=width, facecolor=colour, alpha=alpha, edgecolor=edge, linewidth=1
        )
    )


def _name(axes: Axes, name: str, radius: float, angle: float, colour: str) -> None:
    """Along the radius, never upside down."""
    place = (radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle)))
    turn = angle % 180 if angle % 180 <= 90 else angle % 180 - 180
    axes.text(*place, _short(name), ha="center", va="center", rotation=turn, color=colour, fontsize=9.5)


def _outer_name(axes: Axes, name: str, angle: float, colour: str) -> None:
    """Outside the rings, away from the middle."""
    place = ((OUTER + 0.03) * math.cos(math.radians(angle)), (OUTER + 0.03) * math.sin(math.radians(angle)))
    right = place[0] >= 0
    turn = (angle + 90) % 180 - 90
    side = "left" if right else "right"
    axes.text(
        *place,
        _short(name),
        ha=side,
        va="center",
        rotation=turn,
        rotation_mode="anchor",
        color=colour,
        fontsize=9,
    )


def _short(name: str) -> str:
    return name if len(name) <= 12 else name[:11] + "\N{HORIZONTAL ELLIPSIS}"
