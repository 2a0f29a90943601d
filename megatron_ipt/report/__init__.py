"""ipt report, ipt ablate, ipt data report-pairs: a run, a study or pairs as one HTML page that needs nothing else.

    data.py         the run's files -> typed figures
    curves.py       training curves, smoothed and thinned       figures.py   those -> inline SVG
    tables.py       exact values beside their printed form      parts.py     head, section, example
    preparation.py  results.py  sections.py    figures of a run -> sections in words and tables
    dots.py  ablation.py                       figures of a study -> the same
    pairs.py  model_categories.py              counts of pairs -> the same
    bars.py  count_figures.py                  counts as bars and rings -> axes
    page.py         sections -> HTML, through template.html, style.css and sort.js

A section whose file is not there is left out, and the page says so: each step of a run may be made alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ipt.paths import RunPaths
from megatron_ipt.recipe import ReportSettings

if TYPE_CHECKING:
    from data_prep.pairs_report.model_categories import ModelCategories
    from data_prep.pairs_report.naming import Namer
    from data_prep.settings import PairsReportSettings
    from megatron_ipt.ablate.results import Results

__all__ = ["ablation", "pairs", "report"]


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


def ablation(results: Results, folder: Path) -> Path:
    """Write FOLDER/ablation.html from the results of the study whose runs stand in FOLDER, and return its path."""
    from data_prep.readers import atomic_file
    from megatron_ipt.report.ablation import head, sections
    from megatron_ipt.report.page import render

    newest = max(path.stat().st_mtime for path in folder.glob("runs/*/*/train/metrics.jsonl"))
    date = datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = render("Ablation of blend weights", head(results, date), sections(results), ())
    with atomic_file(folder / "ablation.html") as stream:
        stream.write(page.encode("utf-8"))
    return folder / "ablation.html"


def pairs(
    chains_path: Path,
    out_path: Path,
    settings: PairsReportSettings,
    encode: Callable[[str], Sequence[int]] | None = None,
    namer: Namer | None = None,
) -> ModelCategories | None:
    """Write OUT, a page of what pairs are in a file of chains, and OUT.summary.json; return what a model called them.

    Where `namer` is asked, OUT.categories.jsonl has each pair it was asked about with both names.

    Args:
        encode: gives the tokens that lengths are told in; without it they are told in words.
        namer: asks the model that names categories beside the rules.

    Raises:
        UserError: the chains cannot be read, or the model fails.
    """
    from data_prep.pairs_report import count_pairs, read_drops, summary_of
    from data_prep.pairs_report.naming import make_sample
    from data_prep.readers import atomic_file, beside, write_json, write_jsonl
    from megatron_ipt.report.page import render
    from megatron_ipt.report.pairs import head, sections

    sample = make_sample(settings) if namer else None
    figures = count_pairs(chains_path, encode, sample)
    drops = read_drops(chains_path)
    model = namer(sample) if sample and namer else None
    date = datetime.fromtimestamp(chains_path.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")
    missing = () if drops is not None else (("Dropped by the checks", f"{chains_path.name}.summary.json"),)
    page = render("Pairs", head(figures, chains_path.name, date, model), sections(figures, drops, model), missing)
    if model is not None:
        write_jsonl(beside(out_path, "categories.jsonl"), (each.to_json() for each in model.pairs))
    write_json(beside(out_path, "summary.json"), summary_of(figures, model))
    with atomic_file(out_path) as stream:
        stream.write(page.encode("utf-8"))
    return model
