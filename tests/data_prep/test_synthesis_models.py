"""Where the synthesizer's files come from; the hub is stood in for, as there is none here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from completions_server import serving
from scripted_engine import ScriptedEngine
from tokenizers_for_tests import llama3_like

from data_prep.errors import UserError
from data_prep.readers import write_jsonl
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis import retry_failed, synthesize
from data_prep.synthesis.engines import Request
from data_prep.synthesis.estimate import estimate
from data_prep.synthesis.models import model_of


def test_the_preset_is_the_authors_model_where_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, "*.safetensors" in allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert model_of(SynthesizeSettings(preset="paper"), None) == tmp_path
    assert model_of(SynthesizeSettings(preset="paper", engine="server"), None) == tmp_path
    assert model_of(SynthesizeSettings(preset="paper"), tmp_path / "own") == tmp_path / "own"
    assert model_of(SynthesizeSettings(engine="rules"), None) is None
    assert model_of(SynthesizeSettings(engine="rules", preset="paper"), None) is None
    assert model_of(SynthesizeSettings(), None, ScriptedEngine()) is None
    assert model_of(SynthesizeSettings(), "owner/name") == tmp_path
    paper = "instruction-pretrain/instruction-synthesizer"
    assert asked == [(paper, True), (paper, False), ("owner/name", True)]


@pytest.mark.parametrize(
    ("given", "named", "at_server"),
    [
        ({}, "owner/name", "owner/name"),
        ({"preset": "paper"}, None, "instruction-pretrain/instruction-synthesizer"),
        ({"server_model": "mine"}, "owner/name", "mine"),
        ({}, "FOLDER", "FOLDER"),
    ],
)
def test_a_server_is_asked_by_the_name_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], named: str | None, at_server: str
) -> None:
    folder = llama3_like(tmp_path / "tokenizer")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    write_jsonl(tmp_path / "c.jsonl", [{"id": "d", "text": "The cell divides."}])
    with serving(default="says:<QUE> Q? <ANS> A. </END>") as server:
        settings = SynthesizeSettings(engine="server", server_urls=(server.url,), **given)
        model = folder if named == "FOLDER" else named
        synthesize(settings, tmp_path / "c.jsonl", model, tmp_path / "out.jsonl")
    assert [body["model"] for body in server.bodies] == [str(folder) if at_server == "FOLDER" else at_server]


def test_the_papers_settings_are_the_defaults() -> None:
    """Section 2 and the public code: greedy, 400 new tokens, a window of 4,096."""
    chosen = SynthesizeSettings(preset="paper")
    assert (chosen.temperature, chosen.max_new_tokens, chosen.max_model_len, chosen.pairing) == (0, 400, 4096, "slot")


def test_a_model_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=r"owner/name: no such folder, and .* \(OSError: no route to host\); give"):
        model_of(SynthesizeSettings(), "owner/name")


@pytest.mark.parametrize("engine", ["transformers", "server", "vllm"])
def test_no_synthesizer_is_told_before_anything_is_read(tmp_path: Path, engine: Any) -> None:
    """Whatever the verb: nothing is written, and what a run has made stays as it is."""

    def fail(requests: Sequence[Request]) -> None:
        if "t0" in requests[0].text:
            raise ValueError("too long")

    path, out = tmp_path / "in.jsonl", tmp_path / "c.jsonl"
    write_jsonl(path, [{"id": f"d{i}", "text": f"Text t{i} says little."} for i in range(3)])
    synthesize(SynthesizeSettings(engine=engine), path, None, out, engine=ScriptedEngine(before=fail))
    before = sorted(tmp_path.iterdir())
    settings = SynthesizeSettings(engine=engine)
    verbs: tuple[Callable[[], Any], ...] = (
        lambda: synthesize(settings, path, None, tmp_path / "other.jsonl"),
        lambda: estimate(settings, [path], None, tmp_path / "other.jsonl"),
        lambda: retry_failed(settings, None, out),
    )
    for verb in verbs:
        with pytest.raises(UserError, match=r"^--model: no synthesizer is named; give its directory"):
            verb()
    assert sorted(tmp_path.iterdir()) == before
