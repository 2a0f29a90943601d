"""Whatever goes in, every row, text and sample is accounted for; and how far a run is."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st
from scripted_engine import ScriptedEngine

from data_prep.readers import read_jsonl, write_jsonl
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis import SynthesisProgress, synthesize
from data_prep.synthesis.engines import Completion, Request

LONG = "It says a little more, sentence by sentence. " * 8
TEXTS = st.sampled_from(["Text {0}. ", "Text {0} barren. ", "Text {0} poison. ", "Text {0}. " + LONG, "  ", ""])
ROWS = st.lists(
    st.fixed_dictionaries({"id": st.integers(0, 45).map("d{}".format), "text": TEXTS, "source": st.sampled_from("ab")}),
    max_size=40,
)
ASKED = st.fixed_dictionaries(
    {
        "rounds": st.integers(1, 5),
        "samples": st.integers(1, 3),
        "pairing": st.sampled_from(["slot", "source"]),
        "shard_documents": st.sampled_from([1, 2, 7, 1000]),
        "documents": st.none() | st.integers(1, 20),
    }
)


class Poisoned(ScriptedEngine):
    """Fails on texts that say so."""

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        if any("poison" in request.text for request in requests):
            raise RuntimeError("poison")
        return await super().generate(requests)


@pytest.fixture(scope="module", autouse=True)
def _patient() -> Iterator[None]:
    """However many poisoned texts come in a row, the engine is not given up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.synthesis.schedule.MOST_FAILURES_IN_A_ROW", 10_000)
        patch.setattr("data_prep.synthesis.work.Work.has_results", True)
        yield


def settings(**values: Any) -> SynthesizeSettings:
    return SynthesizeSettings(**{"max_new_tokens": 50, "max_model_len": 2000, "max_text_tokens": 120, **values})


@pytest.mark.parametrize("batch_size", [1, 4])
@how(max_examples=20, deadline=None)
@given(rows=ROWS, asked=ASKED)
def test_every_row_text_and_sample_is_accounted_for(batch_size: int, rows: list[dict[str, str]], asked: dict[str, Any]):
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "in.jsonl"), Path(folder, "c.jsonl")
        rows = [{**row, "text": row["text"].format(number)} for number, row in enumerate(rows)]
        write_jsonl(path, [*rows, {"id": "good", "text": "Text good.", "source": "a"}])
        summary = synthesize(settings(**asked), path, None, out, engine=Poisoned(batch_size))
        assert summary is not None
        _check(out, summary, len(rows) + 1, asked)


def _check(out: Path, summary: dict[str, Any], rows: int, asked: dict[str, Any]) -> None:
    dropped = Counter(row["reason"] for row in read_jsonl(f"{out}.dropped.jsonl"))
    assert dropped == summary["dropped"]
    assert rows == summary["rows"] == summary["documents"] + summary["documents_left_raw"] + dropped.total()
    found = summary["documents"] + summary["documents_left_raw"]
    assert summary["documents"] == min(found, asked["documents"] or found)
    texts = [text for row in read_jsonl(out) for text in row["texts"]]
    used = Counter((text["source"], text["document_id"], text["start"], text.get("sample", 0)) for text in texts)
    left = Counter((row["source"], row["document_id"], row["start"]) for row in read_jsonl(f"{out}.leftover.jsonl"))
    paired = {place[:3] for place in used}
    assert {*used.values(), *left.values()} <= {1} and not paired & set(left)
    assert (
        summary["texts"] == len(paired) + len(left) == summary["texts_with_pairs"] + sum(summary["leftover"].values())
    )
    assert max((len(row["texts"]) for row in read_jsonl(out)), default=0) <= asked["rounds"]
    assert len({row["id"] for row in read_jsonl(out)}) == summary["chains"]
    if asked["pairing"] == "source":
        assert all(len({text["source"] for text in row["texts"]}) == 1 for row in read_jsonl(out))
    assert len({text["document_id"] for text in texts} | {row for _, row, _ in left}) == summary["documents"]
    failed = list(read_jsonl(f"{out}.failed.jsonl"))
    assert len(failed) == summary["failed"] == summary["leftover"].get("engine_failed", 0) * asked["samples"]


def test_progress_is_of_what_is_left_to_this_run(tmp_path: Path):
    write_jsonl(tmp_path / "in.jsonl", [{"id": f"d{i}", "text": f"Text t{i} says little."} for i in range(20)])
    for options, count in (({}, 4), ({"documents": 7}, 1)):
        told: list[SynthesisProgress] = []
        out = tmp_path / f"c{count}.jsonl"
        synthesize(
            settings(shard_documents=5, **options), tmp_path / "in.jsonl", None, out, told.append, Poisoned(), 0, count
        )
        assert told[-1].documents == told[-1].documents_total == (options.get("documents", 5))
