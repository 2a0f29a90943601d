"""The figures of a run -> the head and the sections of its page, in the order of the flow.  Pure."""

from __future__ import annotations

from megatron_ipt.report.data import RunData
from megatron_ipt.report.parts import Head, Section, Tile
from megatron_ipt.report.preparation import blend, examples, pairs, raw_text
from megatron_ipt.report.results import compare, costs, evaluation, training
from megatron_ipt.report.tables import signed


def head(run: RunData) -> Head:
    """The run in one sentence and a few numbers, as far as it got."""
    result = _result(run)
    tiles = [result[1]] if result else []
    documents = run.raw.train if run.raw else run.synthesis.documents if run.synthesis else None
    if documents is not None:
        tiles.append(Tile("documents", f"{documents:,}"))
    pairs = run.checked.kept if run.checked else run.synthesis.pairs if run.synthesis else None
    if pairs is not None:
        tiles.append(Tile("pairs", f"{pairs:,}", "kept by the checks" if run.checked else "before checks"))
    if run.training and run.training.points:
        last = run.training.points[-1]
        tiles.append(Tile("tokens trained", f"{last.consumed_tokens:,}", f"{last.iteration:,} steps"))
    counts = ", ".join(f"{tile.value} {tile.label}" for tile in tiles[1 if result else 0 :])
    parts = [result[0] if result else "No held-out text was scored", counts]
    date = run.written.strftime("%Y-%m-%d %H:%M UTC") if run.written else ""
    return Head(run.name, date, "; ".join(part for part in parts if part) + ".", tuple(tiles))


def _result(run: RunData) -> tuple[str, Tile] | None:
    """Held-out bits per byte in words and as a tile: from the evaluation, else from validation while training."""
    label = "held-out bits per byte"
    for row in compare(run.evaluation) if run.evaluation else ():
        if row.self_made:
            continue
        before, after = (f"{score.bits_per_byte:.4f}" if score else "" for score in (row.before, row.after))
        if not (before and after):
            return f"Held-out text costs {before or after} bits per byte", Tile(label, before or after, row.name)
        change = "" if row.change is None else f"{signed(row.change).text} \N{PLUS-MINUS SIGN} {row.error:.4f}"
        sentence = f"Held-out text costs {before} bits per byte before training and {after} after"
        return f"{sentence} ({row.reading})", Tile(label, f"{before} \N{RIGHTWARDS ARROW} {after}", change)
    if run.training and run.training.validation:
        name = run.training.validation[0].name
        points = [point for point in run.training.validation if point.name == name]
        values = [f"{point.bits_per_byte:.4f}" for point in (points[0], points[-1])]
        steps = f"step {points[0].iteration:,} to {points[-1].iteration:,}"
        sentence = f"Held-out text costs {values[0]} bits per byte at first and {values[1]} at last"
        tile = Tile(label, " \N{RIGHTWARDS ARROW} ".join(values), f"validation, {steps}")
        return f"{sentence} (validation, {steps})", tile
    return None


def sections(run: RunData, smoothing: float) -> list[Section]:
    """The sections whose files the run has, in the order of the flow."""
    found = [
        run.raw and raw_text(run.raw),
        pairs(run.synthesis, run.checked),
        examples(run.examples) if run.examples else None,
        run.plan and blend(run.plan),
        run.training and training(run.training, smoothing),
        run.evaluation and evaluation(run.evaluation),
        costs(run.steps) if run.steps else None,
    ]
    return [section for section in found if section]
