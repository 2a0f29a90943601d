"""ipt report: what a run wrote, as one HTML page that needs nothing else.

    data.py         the run's files -> typed figures
    curves.py       training curves, smoothed and thinned       figures.py   those -> inline SVG
    tables.py       exact values beside their printed form      parts.py     head, section, example
    preparation.py  results.py  sections.py    figures of a run -> sections in words and tables
    page.py         sections -> HTML, through template.html, style.css and sort.js

A section whose file is not there is left out, and the page says so: each step of a run may be made alone.
"""

from __future__ import annotations

from pathlib import Path

from megatron_ipt.paths import RunPaths
from megatron_ipt.recipe import ReportSettings

__all__ = ["report"]


def report(settings: ReportSettings, paths: RunPaths, name: str) -> Path:
    """Write `paths.report` from whatever the run called `name` has written so far, and return its path.

    Raises:
        UserError: a file of the run is damaged or lacks a key; the disk is full.
    """
    from data_prep.readers import atomic_file
    from megatron_ipt.report.data import load_run
    from megatron_ipt.report.page import render
    from megatron_ipt.report.sections import head, sections

    run = load_run(paths, name, settings.documents)
    page = render(settings.title, head(run), sections(run, settings.smoothing), run.missing)
    with atomic_file(paths.report) as stream:
        stream.write(page.encode("utf-8"))
    return paths.report
