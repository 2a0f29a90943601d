"""Options that hold tables: JSON, or a YAML or JSON file, up to the settings and to the engine."""

from __future__ import annotations

import sys
from dataclasses import make_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from data_prep.errors import UserError
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis.engines import make_engine
from data_prep.synthesis.wire import byte_wire
from megatron_ipt.cli import steps
from megatron_ipt.cli.main import app

GIVEN = {"max_num_seqs": 512, "speculative_config": {"num_speculative_tokens": 3}}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[SynthesizeSettings]:
    """The settings that `ipt data synthesize` was called with, each time; it does nothing."""
    told: list[SynthesizeSettings] = []
    monkeypatch.setattr(steps, "synthesize", lambda settings, *_: told.append(settings))
    return told


def synthesize(*options: object) -> None:
    CliRunner().invoke(app, ["data", "synthesize", "in.jsonl", "out.jsonl", *map(str, options)], catch_exceptions=False)


def test_a_table_is_json_or_a_file_of_it(tmp_path: Path, told: list[SynthesizeSettings]) -> None:
    (tmp_path / "a.yaml").write_text("max_num_seqs: 512\nspeculative_config:\n  num_speculative_tokens: 3\n")
    (tmp_path / "a.json").write_text('{"max_num_seqs": 512, "speculative_config": {"num_speculative_tokens": 3}}')
    for given in ((tmp_path / "a.json").read_text(), tmp_path / "a.yaml", tmp_path / "a.json"):
        synthesize("--engine", "vllm", "--engine-args", given)
    synthesize()
    assert [settings.engine_args for settings in told] == [GIVEN] * 3 + [{}]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ('{"max_num_seqs": 512', "cannot be read: "),
        ("max_num_seqs=512", "is neither a JSON object nor a file; give JSON"),
        ('["max_num_seqs"]', r"holds no object, but \['max_num_seqs'\]"),
        ("FILE: [1", "cannot be read: "),
        ("FILE:512", "holds no object, but 512"),
        ("FILE:1: 2", "valid string"),
        ("FILE:since: 2020-01-01", "valid JSON"),
    ],
)
def test_what_is_no_table_is_told_in_one_line(
    tmp_path: Path, told: list[SynthesizeSettings], given: str, words: str
) -> None:
    if given.startswith("FILE:"):
        (tmp_path / "a.yaml").write_text(given.removeprefix("FILE:"))
        given = str(tmp_path / "a.yaml")
    with pytest.raises(UserError, match=rf"^--engine-args: .*{words}"):
        synthesize("--engine-args", given)
    assert not told


def test_an_argument_that_the_engine_does_not_have_is_refused_with_the_nearest_name(
    told: list[SynthesizeSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM is stood in for by its arguments' names: nothing else of it is asked before they are checked."""
    arguments: Any = make_dataclass("AsyncEngineArgs", ["model", "max_num_seqs"])
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(AsyncEngineArgs=arguments))  # type: ignore[arg-type]
    synthesize("--engine", "vllm", "--engine-args", '{"max_num_sequences": 512}')
    with pytest.raises(UserError, match="no engine argument 'max_num_sequences'; did you mean 'max_num_seqs'"):
        make_engine(told[0], Path("model"), byte_wire())
