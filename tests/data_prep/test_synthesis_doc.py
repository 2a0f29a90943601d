"""docs/synthesis.md: what it says of the account of a run holds in one that drops, leaves raw, fails and retries."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripted_engine import ScriptedEngine

from data_prep.readers import write_jsonl
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis import retry_failed, synthesize
from data_prep.synthesis.engines import Request

PAGE = (Path(__file__).parents[2] / "docs" / "synthesis.md").read_text(encoding="utf-8")
SUMS = re.findall(r"^    (\w+) = (\w+(?: \+ [\w()]+)+)$", PAGE, re.M)


def _total(terms: str, summary: dict[str, Any]) -> int:
    """The sum of the summary's terms, `NAME` a number and `sum(NAME)` a table of counts."""
    named = (re.fullmatch(r"(?:sum\()?(\w+)\)?", term) for term in terms.split(" + "))
    found = [summary[name[1]] for name in named if name]
    return sum(sum(each.values()) if isinstance(each, dict) else each for each in found)


def test_the_account_adds_up_as_the_page_says(tmp_path: Path) -> None:
    def fail(requests: Sequence[Request]) -> None:
        if any("poison" in request.text for request in requests):
            raise ValueError("too long")

    texts = ["poison" if i < 6 else "barren" if i < 12 else "plain" for i in range(18)]
    rows: list[dict[str, Any]] = [{"id": f"d{i}", "text": f"Text {text} says little."} for i, text in enumerate(texts)]
    write_jsonl(tmp_path / "in.jsonl", [*rows, {"id": "blank", "text": " "}, rows[0], {"id": "none"}])
    settings, out = SynthesizeSettings(engine="rules", documents=11), tmp_path / "c.jsonl"
    first = synthesize(settings, tmp_path / "in.jsonl", None, out, engine=ScriptedEngine(before=fail))
    assert first is not None and len(SUMS) == 2
    assert first["rows"] == 21 and first["documents_left_raw"] == 7 and first["failed"] and len(first["dropped"]) == 3
    for summary in (first, retry_failed(settings, None, out, engine=ScriptedEngine())):
        assert [summary[name] for name, _ in SUMS] == [_total(terms, summary) for _, terms in SUMS]
