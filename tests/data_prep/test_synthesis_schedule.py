"""Synthesis over an engine that answers from a script: failures, kills, resuming, long texts."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from data_prep.errors import UserError
from data_prep.fetch import fetch_model
from data_prep.readers import read_jsonl, write_jsonl
from data_prep.records import Chain
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis import synthesize
from data_prep.synthesis.demonstrations import load_demonstrations
from data_prep.synthesis.engines import Completion
from data_prep.synthesis.schedule import newest_that_fit
from data_prep.synthesis.wire import Wire, load_wire

SETTINGS = {"max_new_tokens": 50, "max_model_len": 1000, "batch_size": 3, "rounds": 2}


class ScriptedEngine:
    """Asks what the last text begins with; `before` may raise."""

    identity: ClassVar = {"engine": "scripted"}

    def __init__(self, wire: Wire, before: Callable[[list[str]], None] = lambda prompts: None) -> None:
        self.wire, self.before = wire, before
        self.prompts: list[str] = []

    def generate(self, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        shown = [self.wire.tokenizer.decode(list(ids), skip_special_tokens=False) for ids in prompts]
        self.before(shown)
        self.prompts += shown
        return [self._complete(prompt, len(ids)) for prompt, ids in zip(shown, prompts, strict=True)]

    @staticmethod
    def _complete(prompt: str, length: int) -> Completion:
        text = prompt.rpartition(" <CON> ")[2].partition(" </CON>")[0]
        if "barren" in text:
            return Completion("nothing to ask", "stop", length, 3)
        word = text.split()[1]
        return Completion(f"<QUE> What of {word}? <ANS> It is {word}. </END>\n\n<QUE> cut", "length", length, 50)


@pytest.fixture(scope="module")
def model() -> Path:
    return fetch_model("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def wire(model: Path) -> Wire:
    return load_wire(model)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = [
        {"id": f"d{i}", "text": f"Text t{i} says little{' barren' if i in (3, 8) else ''}. " * 3} for i in range(11)
    ]
    write_jsonl(tmp_path / "corpus.jsonl", rows)
    return tmp_path / "corpus.jsonl"


def outputs(out: Path) -> dict[str, bytes]:
    return {kind: Path(f"{out}{kind}").read_bytes() for kind in ("", ".leftover.jsonl", ".rejected.jsonl")}


def test_chains_leftovers_and_rejections_account_for_every_text(tmp_path: Path, corpus: Path, model: Path, wire: Wire):
    seen = []
    out = tmp_path / "chains.jsonl"
    engine = ScriptedEngine(wire)
    summary = synthesize(SynthesizeSettings(**SETTINGS), corpus, model, out, seen.append, engine)
    chains = [Chain.from_json(row) for row in read_jsonl(out)]
    used = [text.document_id for chain in chains for text in chain.texts]
    left = list(read_jsonl(f"{out}.leftover.jsonl"))
    assert sorted(used + [row["document_id"] for row in left]) == sorted(f"d{i}" for i in range(11))
    assert {row["document_id"] for row in left} == {"d3", "d8"} and {row["reason"] for row in left} == {"no_pairs"}
    assert (summary["texts"], summary["texts_with_pairs"], summary["pairs"]) == (11, 9, 9)
    assert summary["leftover"] == {"no_pairs": 2} and summary["rejected"] == {"cut_off": 11}
    assert len(list(read_jsonl(f"{out}.rejected.jsonl"))) == 11
    assert (seen[-1].texts, seen[-1].documents, seen[-1].pairs) == (11, 11, 9)
    second = [prompt for prompt in engine.prompts if prompt.count(" <CON> ") == 2]
    assert second and all("</END><|im_end|><|im_start|> <CON> " in prompt for prompt in second)


def test_a_killed_run_resumes_and_writes_the_same_bytes(tmp_path: Path, corpus: Path, model: Path, wire: Wire):
    settings = SynthesizeSettings(**SETTINGS)
    synthesize(settings, corpus, model, tmp_path / "whole.jsonl", engine=ScriptedEngine(wire))
    calls = []

    def kill(prompts: list[str]) -> None:
        calls.append(prompts)
        if len(calls) == 3:
            raise KeyboardInterrupt

    out = tmp_path / "killed.jsonl"
    with pytest.raises(KeyboardInterrupt):
        synthesize(settings, corpus, model, out, engine=ScriptedEngine(wire, kill))
    assert not out.exists()
    journal = Path(f"{out}.journal.jsonl")
    journal.write_bytes(journal.read_bytes()[:-20])  # the kill cut a line short: its batch is made again
    resumed = ScriptedEngine(wire)
    synthesize(settings, corpus, model, out, engine=resumed)
    assert outputs(out) == outputs(tmp_path / "whole.jsonl")
    assert len(resumed.prompts) == 11 - 3
    again = ScriptedEngine(wire)
    synthesize(settings, corpus, model, out, engine=again)
    assert not again.prompts and outputs(out) == outputs(tmp_path / "whole.jsonl")


def test_a_failing_text_is_told_in_the_engines_words_and_the_rest_goes_on(
    tmp_path: Path, corpus: Path, model: Path, wire: Wire, caplog
):
    def fail(prompts: list[str]) -> None:
        if any("t5" in prompt for prompt in prompts):
            raise RuntimeError("CUDA error: device-side\nassert")

    out = tmp_path / "chains.jsonl"
    summary = synthesize(SynthesizeSettings(**SETTINGS), corpus, model, out, engine=ScriptedEngine(wire, fail))
    assert summary["leftover"] == {"no_pairs": 2, "engine_failed": 1} and summary["texts_with_pairs"] == 8
    reasons = {row["document_id"]: row["reason"] for row in read_jsonl(f"{out}.leftover.jsonl")}
    assert reasons["d5"] == "engine_failed: RuntimeError: CUDA error: device-side assert"
    assert "document d5 failed" in caplog.text
    retried = ScriptedEngine(wire)
    assert synthesize(SynthesizeSettings(**SETTINGS), corpus, model, out, engine=retried)["texts_with_pairs"] == 9


def test_an_engine_that_always_fails_is_an_error_in_its_words(tmp_path: Path, corpus: Path, model: Path, wire: Wire):
    def fail(prompts: list[str]) -> None:
        raise ValueError("out of memory")

    with pytest.raises(UserError, match="every text of round 1 failed \\(ValueError: out of memory\\)"):
        synthesize(SynthesizeSettings(**SETTINGS), corpus, model, tmp_path / "c", engine=ScriptedEngine(wire, fail))


def test_long_documents_come_in_pieces_that_fit_and_the_oldest_shots_go(tmp_path: Path, model: Path, wire: Wire):
    rows = [
        {"id": f"d{i}", "text": f"Text t{i} is long. It has many sentences, like this one. " * 60} for i in range(4)
    ]
    write_jsonl(tmp_path / "long.jsonl", rows)
    engine = ScriptedEngine(wire)
    settings = SynthesizeSettings(**SETTINGS, max_text_tokens=500, demonstrations="builtin")
    summary = synthesize(settings, tmp_path / "long.jsonl", model, tmp_path / "c.jsonl", engine=engine)
    shown = [wire.encode(prompt) for prompt in engine.prompts]
    assert max(map(len, shown)) <= 1000 - 50 + 40  # encoded as plain text, BOS and EOS are several tokens
    assert summary["texts"] > 4 and summary["shots_dropped"] > 0
    pieces = [text for row in read_jsonl(tmp_path / "c.jsonl") for text in Chain.from_json(row).texts]
    for row in rows:
        own = sorted((text for text in pieces if text.document_id == row["id"]), key=lambda text: text.start)
        assert "".join(text.text for text in own) == row["text"]
        assert all(row["text"][text.start : text.end] == text.text for text in own)
    assert all("Skarsund" in prompt for prompt in engine.prompts)
    assert "Skarsund" not in (tmp_path / "c.jsonl").read_text()


def test_the_newest_shots_that_fit_stay():
    shots = [[1] * 5, [2] * 4, [3] * 3]
    assert newest_that_fit(shots, 7) == shots[1:]
    assert newest_that_fit(shots, 2) == [] and newest_that_fit(shots, 12) == shots


def test_the_choice_of_documents_depends_on_seed_and_id_only(tmp_path: Path, corpus: Path, model: Path, wire: Wire):
    def chosen(path: Path, count: int) -> set[str]:
        settings = SynthesizeSettings(**SETTINGS, documents=count)
        synthesize(settings, path, model, tmp_path / "c.jsonl", engine=ScriptedEngine(wire))
        files = (tmp_path / "c.jsonl", tmp_path / "c.jsonl.leftover.jsonl")
        return {f"d{i}" for i in range(11) if any(f'"d{i}"' in file.read_text() for file in files)}

    rows = list(read_jsonl(corpus))
    write_jsonl(tmp_path / "reversed.jsonl", rows[::-1])
    assert chosen(corpus, 4) == chosen(tmp_path / "reversed.jsonl", 4) < chosen(corpus, 7)


def test_settings_and_files_that_cannot_work_are_told(tmp_path: Path, corpus: Path, model: Path):
    with pytest.raises(UserError, match=r"max_model_len: .* tokens are left for a text"):
        synthesize(SynthesizeSettings(max_new_tokens=400, max_model_len=420), corpus, model, tmp_path / "c")
    with pytest.raises(UserError, match="no such directory"):
        synthesize(SynthesizeSettings(), corpus, tmp_path / "none", tmp_path / "c")
    bad = tmp_path / "shots.jsonl"
    bad.write_text(json.dumps({"text": "x", "pairs": []}) + "\n")
    with pytest.raises(UserError, match=r"shots\.jsonl:1: a demonstration needs"):
        load_demonstrations(bad)
    assert all(shot.pairs for shot in load_demonstrations("builtin")) and load_demonstrations(None) == []
