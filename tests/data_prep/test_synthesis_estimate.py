"""`--plan`: what it tells of a run is what the run then takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from scripted_engine import ScriptedEngine
from typer.testing import CliRunner

from data_prep.readers import read_jsonl, write_jsonl
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis import synthesize
from data_prep.synthesis.engines import Completion, Request
from data_prep.synthesis.estimate import Estimate, estimate
from megatron_ipt.cli.main import app

SENTENCE = "It says a little more, sentence by sentence. "


def settings(**values: Any) -> SynthesizeSettings:
    return SynthesizeSettings(
        **{"engine": "rules", "max_new_tokens": 50, "max_model_len": 2000, "max_text_tokens": 200, **values}
    )


def wordy(request: Request) -> Completion:
    """Says more of longer texts, and nothing of a barren one."""
    pairs = 0 if "barren" in request.text else 1 + len(request.text) % 3
    text = "\n\n".join(f"<QUE> What of {number}? <ANS> It is {number}. </END>" for number in range(pairs))
    return Completion(text, "stop", len(request.prompt), 3 + 20 * pairs)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = [
        {"id": f"d{i}", "source": "ab"[i % 2], "text": f"Text {'barren' if i % 9 == 4 else i}. " + SENTENCE * (i % 13)}
        for i in range(60)
    ]
    write_jsonl(tmp_path / "in.jsonl", [*rows, {"id": "blank", "text": " "}])
    return tmp_path / "in.jsonl"


def planned(corpus: Path, options: SynthesizeSettings, **asked: Any) -> Estimate:
    """Of a run that is not the one of `real`, since a plan leaves the folder of its run filled."""
    engine = ScriptedEngine(batch_size=asked.pop("batch_size", 1), reply=wordy)
    return estimate(options, [corpus], None, corpus.with_name("plan.jsonl"), engine=engine, **asked)


def real(corpus: Path, options: SynthesizeSettings) -> dict[str, int]:
    """The figures of the run itself: of its summary, and the JSON of the texts in its files."""
    out = corpus.with_name("c.jsonl")
    summary = synthesize(options, corpus, None, out, engine=ScriptedEngine(reply=wordy))
    assert summary is not None
    texts = [text for chain in read_jsonl(out) for text in chain["texts"]]
    for row in read_jsonl(f"{out}.leftover.jsonl"):
        del row["reason"]
        texts.append(row)
    figures = {name: summary[name] for name in ("documents", "texts", "prompt_tokens", "completion_tokens", "pairs")}
    return figures | {"bytes": sum(len(orjson.dumps(text)) for text in texts)}


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    "options",
    [{"rounds": 1}, {"rounds": 3}, {"rounds": 2, "pairing": "source"}, {"rounds": 2, "documents": 23}, {"samples": 3}],
)
def test_a_plan_by_all_documents_is_what_the_run_takes(corpus: Path, options: dict[str, Any], batch_size: int):
    found = planned(corpus, settings(**options), sample=100, batch_size=batch_size)
    figures = real(corpus, settings(**options))
    assert figures["texts"] > figures["documents"] == found.documents == found.sampled == options.get("documents", 60)
    assert (found.rows, found.dropped) == (61, {"only_spaces": 1})
    for name, (expected, low, high) in found.figures.items():
        assert round(expected, 6) == figures.pop(name), name
        assert low <= expected <= high
    assert set(figures) == {"documents"}


def test_the_interval_of_a_sample_holds_what_the_run_takes(corpus: Path):
    found = planned(corpus, settings(), sample=20)
    figures = real(corpus, settings())
    assert (found.sampled, found.documents) == (20, figures["documents"])
    for name, (expected, low, high) in found.figures.items():
        assert low < figures[name] < high and expected / 2 < low < expected < high < 2 * expected, name
    narrower = planned(corpus, settings(), sample=50).figures["completion_tokens"]
    assert narrower[2] - narrower[1] < found.figures["completion_tokens"][2] - found.figures["completion_tokens"][1]


def test_hours_are_those_of_the_completion_tokens_at_the_rate(corpus: Path):
    tokens = real(corpus, settings())["completion_tokens"]
    for engine, gpus in (("rules", None), ("transformers", None), ("server", None), ("vllm", 4)):
        options = settings(engine=engine, tensor_parallel_size=4)
        found = planned(corpus, options, sample=100, rate=2.5)
        assert found.rate == 2.5 and found.hours == pytest.approx(tokens / 2.5 / 3600, rel=1e-12)
        assert found.gpu_hours == (gpus and gpus * found.hours)
    measured = planned(corpus, settings(), sample=100)
    assert measured.rate > 1000 and measured.hours == pytest.approx(tokens / measured.rate / 3600, rel=1e-12)


def table_of(*arguments: str | Path) -> tuple[str, dict[str, list[str]]]:
    """What the command prints, and its table: the cells of each row by its name."""
    result = CliRunner().invoke(app, ["data", "synthesize", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.output.splitlines() if "│" in line]
    return result.output, {name: cells for name, *cells in rows}


def test_the_command_tells_the_plan_before_anything_runs(tmp_path: Path):
    rows = [
        {"id": f"d{i}", "text": f"Berlin is the capital of Germany. It has {i} parks, because it rains."}
        for i in range(9)
    ]
    write_jsonl(tmp_path / "in.jsonl", [*rows, {"id": "none"}])
    asked = [tmp_path / "in.jsonl", tmp_path / "c.jsonl", "--engine", "rules", "--rounds", "2"]
    told, table = table_of(*asked, "--plan", "--plan-rate", "2")
    assert not (tmp_path / "c.jsonl").exists()
    assert "10 rows, 9 documents to synthesize, by 9 of them" in told and table["dropped: no_text"][0] == "1"
    assert "by 2 completion tokens a second of an engine, as given" in told
    table_of(*asked)
    summary = orjson.loads((tmp_path / "c.jsonl.summary.json").read_bytes())
    for name in ("texts", "pairs", "prompt_tokens", "completion_tokens"):
        expected, low, high = (int(cell.replace(",", "")) for cell in table[name.replace("_", " ")])
        assert low <= expected == summary[name] <= high and expected > 0
    assert int(table["bytes"][0].replace(",", "")) > sum(len(row["text"]) for row in rows)
    assert float(table["hours of one engine"][0]) == pytest.approx(summary["completion_tokens"] / 7200, rel=1e-3)
    assert "GPU-hours" not in table


def test_the_rate_of_the_sample_is_told_as_an_upper_bound_of_time(tmp_path: Path):
    write_jsonl(tmp_path / "in.jsonl", [{"id": "d", "text": "Berlin is the capital of Germany."}])
    told, table = table_of(tmp_path / "in.jsonl", tmp_path / "c.jsonl", "--engine", "rules", "--plan")
    assert float(table["hours of one engine"][0]) > 0
    assert re.search(r"by [1-9][\d,]* completion tokens a second of an engine, as the sample ran", told)
    assert "upper bound of time" in " ".join(told.split())
