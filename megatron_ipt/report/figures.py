"""Plots -> inline SVG, drawn by matplotlib in colours that the page's style sheet decides."""

from __future__ import annotations

import io
import itertools
import re
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from megatron_ipt.report.bars import Bars, Sunburst
from megatron_ipt.report.count_figures import draw_bars, draw_sunburst
from megatron_ipt.report.curves import Plot, Series
from megatron_ipt.report.dots import Dots

# matplotlib wants colours, the page has light and dark ones: each stands in for a variable of style.css.
STAND_INS = {"#010203": "ink-soft", "#010204": "rule", "#010205": "series-1", "#010206": "series-2", "#010207": "faint"}
INK, RULE, FIRST, SECOND, FAINT = STAND_INS
PAGE, *HUES = (f"#0102{number:02x}" for number in range(0x10, 0x19))
STAND_INS |= {PAGE: "page"} | {hue: f"hue-{number}" for number, hue in enumerate(HUES, 1)}
ROUND = [1, 2, 2.5, 5, 10]
VALIDATION_MARKERS = "Ds^v"
LINE_STYLES = ("-", "--", ":", "-.")
GROUP_MARKERS = "os^Dv<>"

SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text: it can be read out, selected and set in the page's font
    "svg.hashsalt": "report",
    "text.parse_math": False,  # a data set may have a $ in its name
    "font.size": 10,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.labelcolor": INK,
    "text.color": INK,
}


AnyPlot = Plot | Dots | Bars | Sunburst


def draw(plot: AnyPlot) -> str:
    """One <svg> element without an outside reference; ids begin with the plot's anchor."""
    with rc_context(SETTINGS):
        figure = Figure(figsize=_size(plot), layout="constrained")
        axes = figure.add_subplot()
        if isinstance(plot, Dots):
            _draw_dots(axes, plot)
        elif isinstance(plot, Bars):
            draw_bars(axes, plot, FIRST, RULE)
        elif isinstance(plot, Sunburst):
            draw_sunburst(axes, plot, HUES, FAINT, PAGE, INK)
        else:
            _draw_curves(axes, plot)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _inline(stream.getvalue(), plot)


def _size(plot: AnyPlot) -> tuple[float, float]:
    """Inches at the page's scale."""
    if isinstance(plot, Dots):
        return 10.4, 1.3 + 0.55 * len(plot.rows)
    if isinstance(plot, Sunburst):
        return 10.4, 7.6
    if isinstance(plot, Bars) and plot.lying:
        return 10.4 if plot.large else 5.1, 0.8 + 0.24 * len(plot.rows)
    return (10.4, 4.2) if plot.large else (5.1, 2.3)


def _draw_dots(axes: Axes, plot: Dots) -> None:
    """A row's points stand a little apart, so that equal values are both seen; the first row is the top one."""
    base = plot.rows[plot.reference]
    axes.axvspan(
        base.mean - base.sd, base.mean + base.sd, color=FAINT, alpha=0.25, linewidth=0, label="noise of the baseline"
    )
    axes.axvline(base.mean, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    apart = 0.3 / max(len(plot.groups) - 1, 1)
    for index, name in enumerate(plot.groups):
        heights = [row + apart * index - 0.15 for row in range(len(plot.rows))]
        marker = GROUP_MARKERS[index % len(GROUP_MARKERS)]
        axes.plot([row.values[index] for row in plot.rows], heights, marker, color=FIRST, markersize=6, label=name)
    means, noise = [row.mean for row in plot.rows], [row.sd for row in plot.rows]
    places = range(len(means))
    axes.errorbar(means, places, xerr=noise, fmt="none", ecolor=SECOND, elinewidth=1, capsize=3)
    axes.plot(means, places, "|", color=SECOND, markersize=24, markeredgewidth=2)
    axes.plot([], [], "|", color=SECOND, markersize=11, markeredgewidth=2, label=f"mean, \u00b1 {plot.noise}")
    axes.set_yticks(range(len(means)), [row.name for row in plot.rows])
    axes.set_ylim(len(means) - 0.5, -0.5)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(plot.x_label)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=ROUND))
    columns = min(len(plot.groups) + 2, 6)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, frameon=False, borderpad=0, handlelength=1.4)


def _draw_curves(axes: Axes, plot: Plot) -> None:
    markers = iter(VALIDATION_MARKERS * len(plot.series))
    lines = {style: itertools.cycle(LINE_STYLES) for style in ("domain", "general")}
    for series in plot.series:
        if series.style in lines:
            colour = SECOND if series.style == "general" else FIRST
            axes.plot(series.x, series.y, next(lines[series.style]), color=colour, linewidth=2, label=series.name)
        else:
            _draw_series(axes, series, next(markers) if series.style == "validation" else "")
    _dress(axes, plot)


def _draw_series(axes: Axes, series: Series, marker: str) -> None:
    if series.style == "raw":
        axes.plot(series.x, series.y, ".", color=FAINT, markersize=4, label=series.name)
    elif series.style == "validation":
        axes.plot(series.x, series.y, "-", color=SECOND, linewidth=1, marker=marker, markersize=6, label=series.name)
    else:
        dot = "o" if len(series.x) == 1 else ""
        axes.plot(series.x, series.y, color=FIRST, linewidth=2, marker=dot, label=series.name)


def _dress(axes: Axes, plot: Plot) -> None:
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("tokens trained")
    axes.set_ylabel(plot.y_label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(8 if plot.large else 5, steps=ROUND))
    axes.yaxis.set_major_locator(MaxNLocator(6 if plot.large else 4, steps=ROUND))
    if plot.large:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, borderpad=0, handlelength=1.4)
    else:
        axes.set_ylabel("")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        highest = max((value for series in plot.series for value in series.y if value == value), default=0.0)
        axes.set_ylim(0, 1.08 * highest or 1)


def _inline(svg: str, plot: AnyPlot) -> str:
    """The element alone, with the page's colours and font, and ids that no other figure has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    found = re.search(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', svg)
    if found is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    svg = f'<svg {found[1]} role="img" aria-label="{escape(plot.alt)}">' + svg[found.end() :]
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r'\bid="', f'id="{plot.anchor}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{plot.anchor}-", svg).replace("xlink:href", "href")
    for colour, name in STAND_INS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.strip()
