"""Synthesis over an engine that answers from a script: failures, kills, resuming, shards, workers, long texts."""

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from scripted_engine import ScriptedEngine
from synthesis_files import KINDS, outputs

from data_prep.errors import UserError
from data_prep.readers import read_jsonl, write_jsonl
from data_prep.records import Chain
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis import retry_failed, synthesize
from data_prep.synthesis.demonstrations import load_demonstrations
from data_prep.synthesis.engines import Request
from data_prep.synthesis.prompts import newest_that_fit
from data_prep.synthesis.wire import byte_wire

SETTINGS: dict[str, Any] = {"max_new_tokens": 50, "max_model_len": 4000, "batch_size": 3, "rounds": 2}
WIRE = byte_wire()
BOTH = pytest.mark.parametrize("batch_size", [1, 3])


class Killed(BaseException):
    """As from a signal: not an engine's error."""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = [
        {"id": f"d{i}", "text": f"Text t{i} says little{' barren' if i in (3, 8) else ''}. " * 3} for i in range(11)
    ]
    write_jsonl(tmp_path / "corpus.jsonl", rows)
    return tmp_path / "corpus.jsonl"


def settings(**values: Any) -> SynthesizeSettings:
    return SynthesizeSettings(**{**SETTINGS, **values})


def chains(out: Path) -> list[Chain]:
    return [Chain.from_json(row) for row in read_jsonl(out)]


def failing_on(word: str, error: Callable[[], BaseException]) -> Callable[[Sequence[Request]], None]:
    def before(requests: Sequence[Request]) -> None:
        if any(word in request.text for request in requests):
            raise error()

    return before


@BOTH
def test_chains_leftovers_and_rejections_account_for_every_text(tmp_path: Path, corpus: Path, batch_size: int):
    seen = []
    out = tmp_path / "chains.jsonl"
    engine = ScriptedEngine(batch_size)
    summary = synthesize(settings(), corpus, None, out, seen.append, engine)
    assert summary is not None
    used = [text.document_id for chain in chains(out) for text in chain.texts]
    left = list(read_jsonl(f"{out}.leftover.jsonl"))
    assert sorted(used + [row["document_id"] for row in left]) == sorted(f"d{i}" for i in range(11))
    assert {row["document_id"] for row in left} == {"d3", "d8"} and {row["reason"] for row in left} == {"no_pairs"}
    assert (summary["rows"], summary["documents"], summary["texts"], summary["texts_with_pairs"]) == (11, 11, 11, 9)
    assert summary["leftover"] == {"no_pairs": 2} and summary["rejected"] == {"cut_off": 11}
    assert len(list(read_jsonl(f"{out}.rejected.jsonl"))) == 11
    assert (seen[-1].texts, seen[-1].documents, seen[-1].pairs) == (11, 11, 9)
    shown = [WIRE.decode(request.prompt) for request in engine.requests]
    second = [prompt for prompt in shown if prompt.count(" <CON> ") == 2]
    assert second and all("</END> <CON> " in prompt for prompt in second)
    assert not Path(f"{out}.work").exists()


def test_each_prompt_of_a_chain_extends_the_one_before(tmp_path: Path, corpus: Path):
    engine = ScriptedEngine(concurrency=1)
    synthesize(settings(rounds=3), corpus, None, tmp_path / "c.jsonl", engine=engine)
    asked = [list(request.prompt) for request in engine.requests]
    extended = [after[: len(before)] == before for before, after in pairwise(asked)]
    barren = sum("barren" in request.text for request in engine.requests)
    groups = [request.group for request in engine.requests]
    assert len(set(groups)) == 4 and all(groups[place] == groups[place + 1] for place in range(10) if extended[place])
    assert sum(extended) >= 11 - 4 - barren  # four chains begin anew, and nothing goes on from a text without pairs
    shown = [prompt.count("</END>") for prompt in map(WIRE.decode, asked)]
    assert [request.follows for request in engine.requests] == shown and {0, 1, 2} <= set(shown)


@BOTH
def test_a_killed_run_goes_on_and_writes_the_same_bytes(tmp_path: Path, corpus: Path, batch_size: int):
    synthesize(settings(), corpus, None, tmp_path / "whole.jsonl", engine=ScriptedEngine(batch_size))
    calls: list[int] = []

    def kill(requests: Sequence[Request]) -> None:
        calls.append(len(requests))
        if len(calls) == 1 + 6 // batch_size:
            raise Killed

    out = tmp_path / "killed.jsonl"
    with pytest.raises(Killed):
        synthesize(settings(), corpus, None, out, engine=ScriptedEngine(batch_size, 1, kill))
    assert not out.exists()
    (journal,) = Path(f"{out}.work/journal").iterdir()
    journal.write_bytes(journal.read_bytes()[:-20])  # the kill cut a line short: its batch is made again
    resumed = ScriptedEngine(batch_size)
    synthesize(settings(), corpus, None, out, engine=resumed)
    assert outputs(out) == outputs(tmp_path / "whole.jsonl")
    assert len(resumed.requests) == 11 - (6 - batch_size)
    again = ScriptedEngine(batch_size)
    assert synthesize(settings(), corpus, None, out, engine=again)["chains"] == 5  # type: ignore[index]
    assert not again.requests and outputs(out) == outputs(tmp_path / "whole.jsonl")


@BOTH
def test_a_failing_text_is_told_in_the_engines_words_and_can_be_asked_about_again(
    tmp_path: Path, corpus: Path, batch_size: int, caplog: pytest.LogCaptureFixture
):
    out = tmp_path / "chains.jsonl"
    before = failing_on("t5", lambda: RuntimeError("CUDA error: device-side\nassert"))
    summary = synthesize(settings(), corpus, None, out, engine=ScriptedEngine(batch_size, before=before))
    assert summary is not None
    assert summary["leftover"] == {"no_pairs": 2, "engine_failed": 1} and summary["texts_with_pairs"] == 8
    reasons = {row["document_id"]: row["reason"] for row in read_jsonl(f"{out}.leftover.jsonl")}
    assert reasons["d5"] == "engine_failed: RuntimeError: CUDA error: device-side assert"
    assert "document d5 failed" in caplog.text and summary["failed"] == 1

    unmended = outputs(out)
    with pytest.raises(UserError, match=r"failed on 1 texts in a row .*device-side assert"):
        retry_failed(settings(), None, out, engine=ScriptedEngine(batch_size, before=before))
    assert outputs(out) == unmended
    after = retry_failed(settings(), None, out, engine=ScriptedEngine(batch_size))
    assert after["texts_with_pairs"] == 9 and after["leftover"] == {"no_pairs": 2} and after["failed"] == 0
    assert after["chains"] == len(chains(out)) and chains(out)[-1].texts[0].document_id == "d5"
    assert {row["document_id"] for row in read_jsonl(f"{out}.leftover.jsonl")} == {"d3", "d8"}
    with pytest.raises(UserError, match="no text failed"):
        retry_failed(settings(), None, out, engine=ScriptedEngine(batch_size))
    assert {path.name for path in tmp_path.iterdir()} == {"corpus.jsonl", "chains.jsonl.summary.json"} | {
        f"chains.jsonl{kind}" for kind in KINDS
    }


@BOTH
def test_an_engine_that_always_fails_is_an_error_in_its_words(tmp_path: Path, corpus: Path, batch_size: int):
    engine = ScriptedEngine(batch_size, before=failing_on("", lambda: ValueError("out of memory")))
    with pytest.raises(UserError, match=r"it failed on \d+ texts in a row \(ValueError: out of memory\)"):
        synthesize(settings(), corpus, None, tmp_path / "c", engine=engine)
    summary = synthesize(settings(), corpus, None, tmp_path / "c", engine=ScriptedEngine(batch_size))
    assert summary is not None and summary["texts_with_pairs"] == 9


def test_an_engine_that_dies_in_the_middle_is_not_asked_about_every_text_left(tmp_path: Path):
    rows = [{"id": f"d{i}", "text": f"Text t{i} says little."} for i in range(300)]
    write_jsonl(tmp_path / "many.jsonl", rows)
    calls = []

    def die(requests: Sequence[Request]) -> None:
        calls.append(1)
        if len(calls) > 100:
            raise ConnectionError("gone")

    with pytest.raises(UserError, match=r"64 texts in a row .*gone"):
        synthesize(settings(), tmp_path / "many.jsonl", None, tmp_path / "c", engine=ScriptedEngine(before=die))
    again = ScriptedEngine()
    summary = synthesize(settings(), tmp_path / "many.jsonl", None, tmp_path / "c", engine=again)
    assert summary is not None and summary["leftover"] == {} and len(again.requests) == 200


@BOTH
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_shards_bytes_depend_on_the_shard_only(tmp_path: Path, corpus: Path, batch_size: int, count: int):
    options = settings(shard_documents=3)
    synthesize(options, corpus, None, tmp_path / "whole.jsonl", engine=ScriptedEngine(batch_size))
    out = tmp_path / "parts.jsonl"
    told = [
        synthesize(options, corpus, None, out, None, ScriptedEngine(batch_size), index, count)
        for index in reversed(range(count))
    ]
    assert told[-1] is not None and not any(told[:-1][:1] if count <= 4 else [])
    assert outputs(out) == outputs(tmp_path / "whole.jsonl")


def test_many_chains_are_under_way_at_once_and_no_more_than_the_engine_takes(tmp_path: Path):
    rows = [{"id": f"d{i}", "text": f"Text t{i} says little."} for i in range(60)]
    write_jsonl(tmp_path / "many.jsonl", rows)
    engine = ScriptedEngine(concurrency=17, turns=100)
    synthesize(settings(shard_documents=10), tmp_path / "many.jsonl", None, tmp_path / "c", engine=engine)
    assert engine.most == 17  # a shard has 5 chains: others are opened


def test_long_documents_come_in_pieces_that_fit_and_the_oldest_shots_go(tmp_path: Path):
    rows = [
        {"id": f"d{i}", "text": f"Text t{i} is long. It has many sentences, like this one. " * 60} for i in range(4)
    ]
    write_jsonl(tmp_path / "long.jsonl", rows)
    engine = ScriptedEngine(3)
    options = settings(max_text_tokens=500, max_model_len=3000, demonstrations="builtin")
    summary = synthesize(options, tmp_path / "long.jsonl", None, tmp_path / "c.jsonl", engine=engine)
    assert summary is not None
    assert max(len(request.prompt) for request in engine.requests) <= 3000 - 50
    assert summary["texts"] > 4 and summary["shots_dropped"] > 0
    for request in engine.requests:
        opening = WIRE.opening(request.text)
        assert list(request.prompt[-len(opening) :]) == opening  # though it was encoded to be counted, not for this
    pieces = [text for chain in chains(tmp_path / "c.jsonl") for text in chain.texts]
    for row in rows:
        own = sorted((text for text in pieces if text.document_id == row["id"]), key=lambda text: text.start)
        assert "".join(text.text for text in own) == row["text"]
        assert all(row["text"][text.start : text.end] == text.text for text in own)
    assert all("Skarsund" in WIRE.decode(request.prompt) for request in engine.requests)
    assert "Skarsund" not in (tmp_path / "c.jsonl").read_text()


def test_the_newest_shots_that_fit_stay():
    shots = [[1] * 5, [2] * 4, [3] * 3]
    assert newest_that_fit(shots, 7) == shots[1:]
    assert newest_that_fit(shots, 2) == [] and newest_that_fit(shots, 12) == shots


def test_the_choice_of_documents_depends_on_seed_and_id_only(tmp_path: Path, corpus: Path):
    def chosen(path: Path, count: int) -> set[str]:
        out = tmp_path / f"{path.stem}-{count}"
        summary = synthesize(settings(documents=count), path, None, out, engine=ScriptedEngine())
        assert summary is not None and summary["documents"] == count
        files = (out, Path(f"{out}.leftover.jsonl"))
        return {f"d{i}" for i in range(11) if any(f'"d{i}"' in file.read_text() for file in files)}

    rows = list(read_jsonl(corpus))
    write_jsonl(tmp_path / "reversed.jsonl", rows[::-1])
    assert chosen(corpus, 4) == chosen(tmp_path / "reversed.jsonl", 4) < chosen(corpus, 7)


def test_several_samples_of_a_text_have_chains_and_seeds_of_their_own(tmp_path: Path, corpus: Path):
    out = tmp_path / "c.jsonl"
    engine = ScriptedEngine()
    summary = synthesize(settings(samples=3, temperature=1.0), corpus, None, out, engine=engine)
    assert summary is not None
    assert (summary["texts"], summary["texts_with_pairs"], summary["pairs"]) == (11, 9, 27)
    used = [(text.document_id, text.sample) for chain in chains(out) for text in chain.texts]
    assert len(set(used)) == len(used) == 27 and len({request.seed for request in engine.requests}) == 33
    assert len({chain.id for chain in chains(out)}) == len(chains(out))


def test_a_run_on_its_way_is_not_gone_on_with_by_others_settings(tmp_path: Path, corpus: Path):
    out = tmp_path / "c.jsonl"
    with pytest.raises(Killed):
        synthesize(settings(), corpus, None, out, engine=ScriptedEngine(before=failing_on("", Killed)))
    with pytest.raises(UserError, match=r"c\.jsonl\.work: was begun with another rounds; give what it was begun"):
        synthesize(settings(rounds=3), corpus, None, out, engine=ScriptedEngine())
    synthesize(settings(workers=2, concurrency=7), corpus, None, out, engine=ScriptedEngine())


def test_settings_and_files_that_cannot_work_are_told(tmp_path: Path, corpus: Path):
    with pytest.raises(UserError, match=r"max_model_len: .* tokens are left for a text"):
        synthesize(
            settings(max_new_tokens=400, max_model_len=420), corpus, None, tmp_path / "c", engine=ScriptedEngine()
        )
    with pytest.raises(UserError, match="no such directory"):
        synthesize(settings(), corpus, tmp_path / "none", tmp_path / "c")
    bad = tmp_path / "shots.jsonl"
    bad.write_text(json.dumps({"text": "x", "pairs": []}) + "\n")
    with pytest.raises(UserError, match=r"shots\.jsonl:1: a demonstration needs"):
        load_demonstrations(bad)
    assert all(shot.pairs for shot in load_demonstrations("builtin")) and load_demonstrations(None) == []
