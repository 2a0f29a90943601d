"""The benchmark of synthesis: what its turns say, and that its engines do what they count."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import synthesis_figures as figures
from synthesis_around import measure
from synthesis_cases import CASES
from synthesis_engines import ANSWER_TOKENS, InstantEngine, Watched

from data_prep.readers import write_jsonl
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.engines import Request


def arm(tokens: int, seconds: float, processor: float = 1.0) -> dict[str, float]:
    return {"completion_tokens": tokens, "seconds": seconds, "processor_seconds": processor}


def run(megabytes: float, processor: float) -> dict[str, float]:
    return {"text_bytes": megabytes * 1e6, "processor_seconds": processor}


def test_what_is_done_once_is_told_by_itself() -> None:
    """Two seconds to load, then 4 MB a second."""
    small, large = run(2, 2.5), run(10, 4.5)
    assert figures.marginal(small, large) == pytest.approx(4)
    assert figures.fixed(small, large) == pytest.approx(2)
    assert figures.whole(large) == pytest.approx(10 / 4.5)


def test_arms_are_compared_by_tokens_a_second() -> None:
    """A greedy completion may differ by a token from arm to arm: the sums of a batch run in another order."""
    turn = {"ours": arm(1000, 10.0, 4.0), "bare": arm(900, 8.1, 4.0), "rounds": arm(1000, 15.0, 4.0)}
    assert figures.faster(turn, "bare") == pytest.approx(100 / (900 / 8.1))
    assert figures.faster(turn, "rounds") == pytest.approx(1.5)
    assert figures.faster(turn, "rounds", "processor_seconds") == pytest.approx(1)


def test_the_tables_have_a_row_a_figure_with_its_goal() -> None:
    quick = {**arm(60_000, 1.0), "engine_seconds": 1.0, "most_in_flight": 2000}
    slow = {**arm(40_000, 1.0), "engine_seconds": 1.0, "most_in_flight": 7}
    turns = [{"runs": {"at once": quick, "after a second": slow}}] * 6
    around = [{"runs": {"llama3, 512": [run(1, 1.0), run(5, 2.0)]}}] * 6
    arms = [{"runs": {"ours": arm(100, 1.0), "bare": arm(100, 1.0), "rounds": arm(100, 1.2)}}] * 6
    kinds = {"instant": turns, "around": around, "vllm": arms}
    lines = figures.table({"cases": {kind: {"kind": kind, "turns": turns} for kind, turns in kinds.items()}})
    assert any("at once" in line and "50,000: above" in line and "2,000" in line for line in lines)
    assert any("after a second" in line and "50,000: below" in line for line in lines)
    assert "| llama3 | 512 | 6 | 4.00 (4.00 to 4.00) | above | 0.75 (0.75 to 0.75) | 2.50 (2.50 to 2.50) |" in lines
    assert any("| bare |" in line and line.endswith("| 0.95 | above |") for line in lines)
    assert any("| rounds |" in line and line.endswith("| 1.3 | below |") for line in lines)


def test_an_engine_is_watched_while_it_works() -> None:
    request = Request([1, 2, 3], "text", 0)

    async def asked() -> Watched:
        watched = Watched(InstantEngine(), 4)
        await asyncio.gather(*(watched.generate([request]) for _ in range(3)))
        await watched.generate([request] * 2)
        return watched

    watched = asyncio.run(asked())
    assert watched.most_in_flight == 3 and watched.requests == [request] * 5
    assert watched.completion_tokens == 5 * ANSWER_TOKENS


def test_a_run_with_answers_at_once_is_a_whole_run(tmp_path: Path) -> None:
    rows = [{"id": f"d{number}", "text": f"Text {number} says a little. " * 100} for number in range(50)]
    write_jsonl(tmp_path / "documents.jsonl", rows)
    found = measure(None, str(tmp_path / "documents.jsonl"), {"max_text_tokens": 2000, "rounds": 3})
    assert found["documents"] == 50 and found["texts"] == 100 and found["chains"] == 34
    assert found["completion_tokens"] == 100 * ANSWER_TOKENS and found["most_in_flight"] == 34
    assert found["text_bytes"] == sum(len(row["text"]) for row in rows)


def test_its_cases_are_settings_that_there_are() -> None:
    for case in CASES.values():
        settings = SynthesizeSettings(**case.settings)
        assert case.kind != "vllm" or settings.rounds == 3


def test_the_page_has_the_tables_of_the_figures_that_are_kept() -> None:
    folder = Path(__file__).parents[2] / "docs" / "benchmarks"
    lines = figures.table(json.loads((folder / "synthesis.json").read_text(encoding="utf-8")))
    page = (folder / "synthesis.md").read_text(encoding="utf-8").splitlines()
    assert lines and set(lines) <= set(page)
