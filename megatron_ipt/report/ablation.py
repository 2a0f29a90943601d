"""The results of a study -> the head and the sections of its page.  Pure."""

from __future__ import annotations

from megatron_ipt.ablate.results import ArmResult, Results
from megatron_ipt.report.dots import DotRow, Dots
from megatron_ipt.report.parts import Head, Section, Tile
from megatron_ipt.report.tables import Table, Value, count, csv_link, decimal, percent, seconds, signed, table
from megatron_ipt.report.tables import words as plain

FEW_SEEDS = 3
"""Fewer repeats than this say next to nothing about noise."""


def head(results: Results, date: str) -> Head:
    lowest = min(results.arms, key=lambda arm: arm.mean)
    base = results.baseline_arm
    summary = f"Held-out text costs {base.mean:.4f} bits per byte under the baseline '{base.arm}'"
    if lowest is base:
        summary += ", the lowest mean of all arms."
    else:
        summary += f"; the lowest mean is {lowest.mean:.4f}, of '{lowest.arm}' ({lowest.direction(results.baseline)})."
    run = results.runs[0]
    tiles = (
        Tile("model", results.size, "parameters: a smoke test" if results.smoke_test else "parameters"),
        Tile("arms", f"{len(results.arms)}", f"{len(results.seeds)} seeds each"),
        Tile("tokens a run", f"{run.tokens:,}", f"{run.tokens / results.parameters:.3g} a parameter"),
        Tile("noise at the baseline", f"{base.sd:.4f}", "bits per byte, one standard deviation"),
    )
    return Head(results.name, date, summary, tiles)


def sections(results: Results) -> list[Section]:
    return [_result(results), _draws(results), _runs(results)]


def caveats(results: Results) -> tuple[str, ...]:
    """What the figures do not show, in sentences."""
    found = []
    if results.smoke_test:
        found.append(f"This is a {results.label}: it shows that the machinery works and decides nothing about a blend.")
    if len(results.seeds) < FEW_SEEDS:
        found.append(
            f"{len(results.seeds)} seeds are a poor estimate of noise: it may be off several-fold. No difference is "
            "claimed to be significant; for that take 3 to 5 seeds, at the baseline and at an extreme arm at least."
        )
    else:
        found.append(
            f"Noise is estimated from {len(results.seeds)} seeds an arm; no difference is claimed significant."
        )
    if not results.fresh_weights:
        found.append("The arms start from given weights: a seed sets the data order only.")
    return tuple(found)


def _result(results: Results) -> Section:
    seeds = ", ".join(map(str, results.seeds))
    measure = (
        f"Bits per byte of the whole held-out set ({results.held_out_documents:,} documents, "
        f"{results.held_out_bytes:,} bytes) in each run's last validation; lower is better. Every arm was trained with "
        f"seeds {seeds}, and differences to the baseline '{results.baseline}' are taken seed by seed."
    )
    return Section(
        "result", "Result", (measure, *caveats(results)), plots=(_dots(results),), tables=(_arms_table(results),)
    )


def _dots(results: Results) -> Dots:
    rows: list[list[Value]] = [[arm.arm, *arm.bits_per_byte, arm.mean] for arm in results.arms]
    listed = "; ".join(f"{arm.arm} {arm.mean:.4f} \u00b1 {arm.sd:.4f}" for arm in results.arms)
    caption = (
        f"Each seed's run, and by arm the mean with one standard deviation (sd) between {len(results.seeds)} seeds. "
        f"The band is the baseline's. {results.label[0].upper()}{results.label[1:]}."
    )
    columns = ("arm", *(f"seed_{seed}" for seed in results.seeds), "mean")
    return Dots(
        anchor="arms",
        caption=caption,
        alt=f"Dot plot of held-out bits per byte. Mean and standard deviation between seeds: {listed}.",
        x_label="held-out bits per byte",
        groups=tuple(f"seed {seed}" for seed in results.seeds),
        rows=tuple(DotRow(arm.arm, arm.bits_per_byte, arm.mean, arm.sd) for arm in results.arms),
        reference=results.arms.index(results.baseline_arm),
        noise="1 sd between seeds",
        link=csv_link(columns, rows),
    )


def _arms_table(results: Results) -> Table:
    headings = ["arm", "weights", "mean", *(f"seed {seed}" for seed in results.seeds), "spread between seeds"]
    headings += ["difference", *(f"difference seed {seed}" for seed in results.seeds)]
    headings += ["sd of differences", "seeds agree"]
    rows = [
        (
            plain(arm.arm),
            plain(weights_text(arm)),
            decimal(arm.mean),
            *(decimal(value) for value in arm.bits_per_byte),
            decimal(arm.spread),
            signed(arm.difference),
            *(signed(value) for value in arm.differences),
            decimal(arm.difference_sd),
            plain(arm.direction(results.baseline)),
        )
        for arm in results.arms
    ]
    caption = f"Held-out bits per byte, differences to '{results.baseline}'"
    return table("bits-per-byte", caption, ", ".join(headings), rows)


def _draws(results: Results) -> Section:
    sentence = (
        "Samples that each source gave, counted twice: by reading every sample again as training does, and from what "
        "training logged at each step. The two agree in every run, and each is within one sample of its planned share."
    )
    rows = [
        (
            plain(run.arm),
            count(run.seed),
            plain(draws.source),
            percent(draws.planned_share),
            percent(draws.realised_share),
            count(draws.samples),
            signed(draws.difference, 2),
        )
        for run in results.runs
        for draws in run.draws
    ]
    columns = "arm, seed, source, planned share, realised share, samples, difference:difference_samples"
    shares = table("draws", "Planned and realised shares [samples]", columns, rows)
    return Section("draws", "What each arm drew", (sentence,), tables=(shares,))


def _runs(results: Results) -> Section:
    rows = [
        (
            plain(run.arm),
            count(run.seed),
            decimal(run.bits_per_byte_at_start),
            decimal(run.bits_per_byte),
            decimal(run.loss),
            count(run.iterations),
            count(run.tokens),
            seconds(run.seconds),
        )
        for run in results.runs
    ]
    columns = "arm, seed, before training:at_start, at the end:at_end, loss, steps, tokens, time:seconds"
    sentences = (
        "Each run is an ordinary one: runs/ARM/seed-N/recipe.yaml makes it again with `ipt run`.",
        f"Before the first step all arms of one seed are the same model: {_gap(start_gap(results))}.",
    )
    return Section("runs", "Runs", sentences, tables=(table("runs", "By run", columns, rows),))


def _gap(value: float) -> str:
    if not value:
        return "their bits per byte are equal to the last digit"
    return f"their bits per byte differ by at most {value:.1e}"


def start_gap(results: Results) -> float:
    """The largest difference, before training, between two arms of one seed [bits per byte]."""
    starts: dict[int, list[float]] = {}
    for run in results.runs:
        starts.setdefault(run.seed, []).append(run.bits_per_byte_at_start)
    return max(max(values) - min(values) for values in starts.values())


def weights_text(arm: ArmResult) -> str:
    return ", ".join(f"{source} {weight:g}" for source, weight in arm.weights.items())
