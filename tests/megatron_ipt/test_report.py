"""The report: its numbers are the files', it asks nothing of the network, and it runs nothing of the data."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from data_prep.errors import UserError
from data_prep.records import AugmentedText, Chain, Pair
from megatron_ipt.evaluate.bits_per_byte import difference, read_scores
from megatron_ipt.paths import RunPaths
from megatron_ipt.recipe import ReportSettings
from megatron_ipt.report import report
from megatron_ipt.report.curves import interpolate, smooth, thin
from megatron_ipt.report.preparation import clip

HOSTILE = "</p><script>alert('met')</script><img src=http://evil.example/x onerror=alert(1)> {{ 7 * 7 }}"
LAYOUT = {
    "nproc_per_node": 2,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 2,
    "sequence_parallel": False,
    "micro_batch_size": 1,
    "global_batch_size": 4,
    "seq_length": 512,
    "train_iters": 40,
    "lr": 1e-4,
    "min_lr": 0.0,
    "lr_decay_style": "cosine",
    "bf16": True,
}


def write_run(root: Path) -> RunPaths:
    """A run that went all the way, in small files as the steps write them."""
    paths = RunPaths(root)
    raw = {
        "corpus": "wikipedia-sample",
        "licence": "CC BY-SA 3.0",
        "documents": 2349,
        "train": 600,
        "held_out": 30,
        "dropped": {"shorter than min_characters": 1712, "text met before": 7},
        "characters": 1729878,
    }
    _json(root / "raw" / "summary.json", raw)
    _json(root / "pairs" / "chains.jsonl.summary.json", SYNTHESIS)
    checks = {"in": 52, "kept": 41, "dropped": {"form": {"no question mark": 4}, "grounding": {"under 0.5": 7}}}
    _json(root / "checked" / "chains.jsonl.summary.json", {**checks, "chains": 17, "leftover_texts": 3})
    paths.checked.write_text("".join(json.dumps(chain.to_json()) + "\n" for chain in chains()), encoding="utf-8")
    _json(root / "blend" / "plan.json", PLAN)
    paths.metrics.parent.mkdir(parents=True)
    paths.metrics.write_text("".join(json.dumps(row) + "\n" for row in metrics()), encoding="utf-8")
    _json(paths.checkpoints / "iter_0000020" / "run_card.json", {"recipe": {"train": {**LAYOUT, "seq_length": 9}}})
    _json(paths.checkpoints / "iter_0000040" / "run_card.json", {"recipe": {"train": LAYOUT}})
    _json(paths.evaluation / "before.json", evaluation(1.0))
    _json(paths.evaluation / "after.json", evaluation(0.985))
    for name, seconds, peak in (("train", 561.2, 3 * 2**30), ("fetch", 2.5, None), ("synthesize", 7260.0, 2**30)):
        step = {"name": name, "key": "k", "outputs": "o", "seconds": seconds, "peak_memory_bytes": peak}
        _json(root / ".steps" / f"{name}.json", step)
    return paths


SYNTHESIS = {
    "documents": 12,
    "texts": 24,
    "texts_with_pairs": 20,
    "chains": 18,
    "pairs": 52,
    "shots": 6,
    "shots_dropped": 0,
    "prompt_tokens": 17235,
    "completion_tokens": 4212,
    "new_completion_tokens": 4212,
    "seconds": 154.34,
    "tokens_per_second": 27.3,
    "leftover": {"no_pairs": 4},
    "rejected": {"cut_off": 11, "no_answer": 2},
    "engine": {"engine": "transformers"},
}
PLAN: dict[str, Any] = {
    "blend_hash": "eaecfeac",
    "seq_length": 512,
    "train_samples": 160,
    "rows": [
        {
            "source": name,
            "documents": documents,
            "tokens": tokens,
            "weight": weight,
            "share": weight / 4,
            "sequences": tokens // 512,
            "samples_drawn": int(40 * weight),
            "tokens_drawn": int(40 * weight) * 512,
            "epochs": 40 * weight / (tokens // 512),
            "effective_tokens": 40 * weight * 512.0,
            "flags": flags,
        }
        for name, documents, tokens, weight, flags in (
            ("augmented", 17, 9216, 1.0, []),
            ("raw", 600, 403147, 2.0, []),
            ("tiny", 1, 5120, 1.0, ["4.00 epochs, more than max_epochs 2"]),
        )
    ],
}


def chains() -> list[Chain]:
    pairs = (Pair("Who wrote <b>this</b>?", "Nobody & no one."), Pair("Which year?", "1810"))
    long = AugmentedText("wikipedia-2", "A long sentence of words. " * 100, pairs, 0, 2600, "wikipedia-sample")
    return [
        Chain("chain-1", (AugmentedText("wikipedia-1", HOSTILE, pairs, 0, 90, "wikipedia-sample"), long)),
        Chain("chain-2", (AugmentedText("wikipedia-1", "again", pairs), AugmentedText("wikipedia-3", "Short.", pairs))),
        Chain("chain-3", (AugmentedText("wikipedia-4", "NOT-SHOWN", pairs),)),
    ]


def metrics() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"kind": "parity", "iteration": 0, "tokens": 512, "loss_a": 3.5, "loss_b": 3.5, "max_dlogit": 3.1e-5}
        | {"mean_dlogit": 1e-6, "kl": 2e-9, "dloss": 1.5e-7, "passed": True}
    ]
    for step in range(41):
        if step:
            row = {"kind": "train", "iteration": step, "consumed_samples": 4 * step, "consumed_tokens": 2048 * step}
            row |= {"loss": 2.6 + 0.4 * math.exp(-step / 15) + 0.1 * math.sin(37 * step), "loss_tokens": 2048}
            row |= {"lr": 5e-5 * (1 + math.cos(math.pi * step / 40)), "grad_norm": 2.3 - 0.01 * step}
            row |= {"samples": {"raw": 4}, "step_seconds": 14.0, "data_seconds": 0.35, "tokens_per_second": 140 + step}
            row["sources"] = {name: source_figures(name, step) for name in ("raw", "instructions")}
            rows.append(row | {"memory_bytes": 2981109760 + step})
        if step % 10 == 0:
            loss = 2.95 - 0.001 * step
            row = {"kind": "validation", "iteration": step, "name": "held_out", "loss": loss}
            rows.append(row | {"bits_per_byte": loss / 2.9, "tokens": 4096})
            rows.append(row | {"name": "general", "bits_per_byte": 0.8 + 0.002 * step, "tokens": 4096})
    rows.append({"kind": "checkpoint", "iteration": 40, "path": "iter_0000040", "seconds": 16.2})
    return rows


def source_figures(name: str, step: int) -> dict[str, Any]:
    """`instructions` has a token in every third step only."""
    general = name == "instructions"
    samples = step // 3 if general else 4 * step - step // 3
    figures = {"kind": "general" if general else "raw", "consumed_samples": samples, "consumed_tokens": 512 * samples}
    loss = None if general and step % 3 else 2.0 + general + 0.3 * math.exp(-step / 15)
    return {**figures, "loss": loss, "loss_tokens": 0 if loss is None else 512, "epochs": samples / 50}


def evaluation(factor: float) -> dict[str, Any]:
    sizes = [693, 2830, 874, 2780, 3932, 2247]
    costs = [factor * (0.9 + 0.02 * place) * size for place, size in enumerate(sizes)]
    sets = [
        {"name": name, "self_made": self_made, "tokens": 3334, "bits": costs, "bytes": sizes}
        for name, self_made in (("self_made_pairs", True), ("held_out", False))
    ]
    settings = {"max_tokens": 3000, "max_length": 512, "batch_size": 4, "dtype": "float32", "prefix_token": "<|end|>"}
    return {"model": "hf", "settings": settings, "sets": sets}


def _json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def csv(self, name: str) -> list[dict[str, str]]:
        """The rows behind the CSV link of a table or a figure."""
        link = next(
            tags["href"] for tag, tags in self.tags if tag == "a" and f"-{name}.csv" in (tags.get("download") or "")
        )
        assert link is not None
        return list(csv.DictReader(io.StringIO(unquote(link.partition(",")[2]))))

    def sections(self) -> list[str | None]:
        return [attributes["id"] for tag, attributes in self.tags if tag == "section"]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Page]:
    """The page of a whole run, after `spoil` had its way with the files."""

    def write(spoil: Callable[[RunPaths], None] = lambda paths: None, **settings: Any) -> Page:
        paths = write_run(tmp_path / "run")
        spoil(paths)
        return Page(report(ReportSettings(**settings), paths, "a run").read_text(encoding="utf-8"))

    return write


def test_the_page_needs_nothing_from_outside(make: Callable[..., Page]) -> None:
    page = make()
    asked = ("src", "href", "xlink:href", "action", "data", "poster", "srcset", "background")
    addresses = [attributes.get(name) for _, attributes in page.tags for name in asked]
    assert all(address.startswith(("#", "data:")) for address in addresses if address is not None)
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "embed", "base"}
    assert not re.search(r"@import|url\((?!#)", page.html)
    policy = next(tags["content"] for _, tags in page.tags if tags.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


def test_hostile_text_is_text(make: Callable[..., Page]) -> None:
    page = make()
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert HOSTILE in page.text
    assert "Who wrote <b>this</b>?" in page.text and "<b>this" not in page.html
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_hostile_names_are_text(make: Callable[..., Page]) -> None:
    def spoil(paths: RunPaths) -> None:
        plan = json.loads(json.dumps(PLAN))
        plan["rows"][0]["source"] = '"><script>'
        plan["notes"] = ["'one' and \"><script>: 3 raw texts stand in both"]
        _json(paths.blend.with_name("plan.json"), plan)
        paths.metrics.write_text(paths.metrics.read_text().replace("held_out", "<script>$x_{1$"))

    page = make(spoil, title="<script>")
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert page.csv("blend-plan")[0]["source"] == '"><script>'
    assert "3 raw texts stand in both" in page.text


def test_what_packing_lost_is_told(make: Callable[..., Page]) -> None:
    def spoil(paths: RunPaths) -> None:
        lost = {"pairs of a text longer than a sequence": 1204, "documents of the other side of the split": 9}
        counts = {"documents": 17, "cut_documents": 5, "repeated_tokens": 0, "padding_share": 0.0213, "dropped": lost}
        rows = [{**row, "packing": counts} if row["source"] == "augmented" else row for row in PLAN["rows"]]
        _json(paths.blend.with_name("plan.json"), {**PLAN, "rows": rows})

    told = (
        "Packing of augmented: 2.1% padding; 5 of 17 documents cut; in no sequence: 1,204 pairs of a text longer than"
    )
    page = make(spoil)
    assert told in page.text and "Packing of raw" not in page.text


def test_all_sections_in_the_order_of_the_flow(make: Callable[..., Page]) -> None:
    page = make()
    assert page.sections() == ["raw-text", "pairs", "examples", "blend", "training", "evaluation", "costs"]
    assert "Left out" not in page.text


@pytest.mark.parametrize(
    ("removed", "gone", "told"),
    [
        ("blend/plan.json", "blend", "Blend (blend/plan.json)"),
        ("train/metrics.jsonl", "training", "Training (train/metrics.jsonl)"),
        ("checked/chains.jsonl", "examples", "Documents with their pairs (checked/chains.jsonl)"),
        ("raw/summary.json", "raw-text", "Raw text (raw/summary.json)"),
    ],
)
def test_a_section_without_its_file_is_left_out_and_named(
    make: Callable[..., Page], removed: str, gone: str, told: str
) -> None:
    page = make(lambda paths: (paths.root / removed).unlink())
    assert gone not in page.sections() and len(page.sections()) == 6
    assert told in page.text


def test_without_an_evaluation_validation_gives_the_result(make: Callable[..., Page]) -> None:
    def spoil(paths: RunPaths) -> None:
        (paths.evaluation / "before.json").unlink()
        (paths.evaluation / "after.json").unlink()

    text = make(spoil).text
    assert f"{2.95 / 2.9:.4f} bits per byte at first and {2.91 / 2.9:.4f} at last (validation, step 0 to 40);" in text


def test_an_empty_run_has_a_page(tmp_path: Path) -> None:
    page = Page(report(ReportSettings(), RunPaths(tmp_path), "nothing").read_text(encoding="utf-8"))
    assert page.sections() == [] and "No held-out text was scored." in page.text


def test_a_damaged_file_is_named(make: Callable[..., Page]) -> None:
    with pytest.raises(UserError, match=r"raw/summary.json: the key 'train' is missing"):
        make(lambda paths: _json(paths.root / "raw" / "summary.json", {"corpus": "c", "licence": "l", "documents": 1}))


def test_a_metrics_file_without_steps(make: Callable[..., Page]) -> None:
    page = make(lambda paths: paths.metrics.write_text(json.dumps(metrics()[0]) + "\n"))
    assert "No step was logged." in page.text and "svg" not in dict(page.tags)


def test_table_numbers_are_those_of_the_files(make: Callable[..., Page]) -> None:
    page = make()
    facts = {row["what"]: row["value"] for row in page.csv("run-facts")}
    assert facts["tokens trained"] == str(2048 * 40)
    assert float(facts["tokens a second, median"]) == 160.5
    assert float(facts["share of time waiting for data"]) == pytest.approx(0.025)
    assert facts["peak memory of the fullest rank"] == str(2981109760 + 40)
    assert facts["layout"] == "tensor 1, pipeline 2" and "4 sequences of 512 tokens" in facts["batch"]
    assert float(facts["parity: difference of loss"]) == 1.5e-7
    assert [float(row["share"]) for row in page.csv("blend-plan")] == [0.25, 0.5, 0.25]
    assert [float(row["epochs"]) for row in page.csv("blend-plan")] == [row["epochs"] for row in PLAN["rows"]]
    assert {(row["check"], row["reason"], row["pairs_dropped"]) for row in page.csv("check-drops")} == {
        ("form", "no question mark", "4"),
        ("grounding", "under 0.5", "7"),
    }
    assert [row["documents"] for row in page.csv("raw-text-documents")] == ["600", "30", "1712", "7"]
    assert [row["step"] for row in page.csv("step-costs")] == ["fetch", "synthesize", "train"]
    assert "2 h 01 min" in page.text and "3.00 GiB" in page.text and "41 of 52 pairs" in page.text


def test_curve_numbers_are_those_of_the_files(make: Callable[..., Page]) -> None:
    drawn = make(smoothing=0.5).csv("loss")
    trained = [row for row in metrics() if row["kind"] == "train"]
    assert [float(row["loss"]) for row in drawn if row["series"] == "train"] == [row["loss"] for row in trained]
    assert float(drawn[1]["smoothed_loss"]) == pytest.approx((trained[0]["loss"] + 2 * trained[1]["loss"]) / 3)
    validated = [row for row in drawn if row["series"] == "held_out"]
    assert [row["consumed_tokens"] for row in validated] == [str(2048 * step) for step in range(0, 41, 10)]


def test_sources_and_held_out_sets_stand_against_each_other(make: Callable[..., Page]) -> None:
    page = make(smoothing=0.0)
    trained = [row for row in metrics() if row["kind"] == "train"]
    drawn = page.csv("domain-against-general")
    for name, kind in (("raw", "raw"), ("instructions", "general")):
        rows = [row for row in drawn if row["source"] == name]
        figures = [(row["consumed_tokens"], row["sources"][name]) for row in trained]
        expected = [(tokens, one["loss"], one["epochs"]) for tokens, one in figures if one["loss"] is not None]
        assert [(int(row["consumed_tokens"]), float(row["loss"]), float(row["epochs"])) for row in rows] == expected
        assert {row["kind"] for row in rows} == {kind}
        assert [row["loss"] for row in rows] == [row["smoothed_loss"] for row in rows]
    last = {row["source"]: row for row in page.csv("sources")}
    assert (last["instructions"]["tokens"], last["instructions"]["epochs"]) == (str(512 * 13), str(13 / 50))
    assert (last["raw"]["kind"], last["raw"]["samples"]) == ("raw", str(160 - 13))
    changes = [(row["set"], float(row["change"])) for row in page.csv("held-out-change")]
    assert changes[0] == ("held_out", 0.0) and changes[-1] == ("general", pytest.approx(0.08))
    svgs = {str(tags["aria-label"]) for tag, tags in page.tags if tag == "svg"}
    assert any("instructions (general) 3.2" in label for label in svgs)


def test_one_source_or_a_run_of_before_has_no_panel(make: Callable[..., Page]) -> None:
    def spoil(paths: RunPaths) -> None:
        rows = [json.loads(line) for line in paths.metrics.read_text().splitlines()]
        for row in rows:
            row.pop("sources", None)
        kept = [row for row in rows if row.get("name") != "general"]
        paths.metrics.write_text("".join(json.dumps(row) + "\n" for row in kept))

    page = make(spoil)
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 3 and "Domain against general" not in page.text


def test_evaluation_shows_change_and_error_and_labels_self_made(make: Callable[..., Page], tmp_path: Path) -> None:
    page = make()
    folder = tmp_path / "run" / "evaluation"
    before, after = (
        {score.name: score for score in read_scores(folder / name)} for name in ("before.json", "after.json")
    )
    held_out, self_made = page.csv("bits-per-byte")
    change, error = difference(before["held_out"], after["held_out"])
    assert (float(held_out["change"]), float(held_out["standard_error"])) == (change, error)
    assert float(held_out["after"]) == after["held_out"].bits_per_byte
    assert held_out["note"] == "" and self_made["note"] == "self-made: says nothing about quality"
    assert f"{before['held_out'].bits_per_byte:.4f} bits per byte before training" in page.text
    assert "self-made: says nothing about quality" in page.text


def test_models_scored_on_different_documents_are_not_compared(make: Callable[..., Page]) -> None:
    def spoil(paths: RunPaths) -> None:
        other = evaluation(0.9)
        other["sets"][1]["bytes"][0] += 1
        other["settings"]["max_length"] = 256
        _json(paths.evaluation / "after.json", other)

    page = make(spoil)
    row = page.csv("bits-per-byte")[0]
    assert row["change"] == "" and row["reading"].startswith("not comparable")
    assert "scored under different settings" in page.text


def test_as_many_documents_as_asked_for_each_once(make: Callable[..., Page]) -> None:
    page = make(documents=3)
    assert re.findall(r"<h3>(.*?)</h3>", page.html) == ["wikipedia-1", "wikipedia-2", "wikipedia-3"]
    assert "more characters]" in page.text and "NOT-SHOWN" not in page.text


def test_no_documents_asked_for_none_shown(make: Callable[..., Page]) -> None:
    assert "examples" not in make(documents=0).sections()


def test_figures_have_words_and_ids_of_their_own(make: Callable[..., Page]) -> None:
    page = make()
    figures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(figures) == 5 and all(attributes["role"] == "img" for attributes in figures)
    assert "validation on held_out 2.9500 at step 0 and 2.9100 at step 40" in unescape(str(figures[0]["aria-label"]))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page.html))
    assert used <= set(ids)


def test_smoothing_by_hand() -> None:
    # weights of the past by hand: (0.5 * 4), (0.25 * 4 + 0.5 * 8), (0.125 * 4 + 0.25 * 8 + 0.5 * 0), over their sums
    assert smooth([4.0, 8.0, 0.0], 0.5) == pytest.approx([4.0, 5 / 0.75, 2.5 / 0.875])
    assert smooth([4.0, 8.0], 0.0) == [4.0, 8.0]
    assert smooth([3.0] * 50, 0.99) == pytest.approx([3.0] * 50)


def test_thinning_keeps_the_last_point() -> None:
    assert list(thin(5, 10)) == [0, 1, 2, 3, 4]
    assert list(thin(10, 4)) == [0, 3, 6, 9] and list(thin(0, 4)) == []
    for count in (599, 600, 601, 12345):
        assert len(thin(count, 600)) <= 600 and thin(count, 600)[-1] == count - 1


def test_interpolation_between_and_beyond() -> None:
    assert [interpolate(x, [10, 20], [100, 300]) for x in (0, 5, 10, 15, 20, 30)] == [0, 50, 100, 200, 300, 500]
    assert interpolate(3, [], []) == 0


def test_clipping_between_words() -> None:
    assert clip("short", 10) == "short"
    assert clip("one two three four", 9).startswith("one two \N{HORIZONTAL ELLIPSIS} [11 more")
    assert clip("x" * 30, 9).startswith("x" * 9 + " ")


def test_importing_the_room_loads_nothing_heavy() -> None:
    heavy = ("torch", "megatron", "matplotlib", "jinja2")
    code = f"import sys, megatron_ipt.report; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
