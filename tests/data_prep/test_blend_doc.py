"""docs/blend.md: its files are read, its numbers are those of its commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from data_prep.indexing import index
from data_prep.settings import BlendSettings, IndexSettings
from megatron_ipt.cli.main import app

TEXT = (Path(__file__).parents[2] / "docs" / "blend.md").read_text(encoding="utf-8")
FILES = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)


@pytest.mark.parametrize("file", FILES)
def test_each_blend_file_is_one(file: str) -> None:
    settings = BlendSettings.model_validate(yaml.safe_load(file))
    assert settings.sources and settings.train_tokens


def test_each_mode_and_each_word_of_allow_is_named() -> None:
    fields: dict[str, Any] = BlendSettings.model_json_schema()["properties"]
    modes = next(choice["enum"] for choice in fields["mode"]["anyOf"] if "enum" in choice)
    for word in (*modes, *(f"allow: [{mistake}]" for mistake in fields["allow"]["items"]["enum"])):
        assert f"`{word}`" in TEXT, word


def test_its_plans_are_those_of_its_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", TEXT, re.S)[0], {})
    for rows in sorted(Path().glob("*.jsonl")):
        index(IndexSettings(encoder="tokenizers"), [rows], Path("tokenizer"), Path(rows.stem))
    Path("blend.yaml").write_text(FILES[1])
    examples = re.findall(r"    \$ ipt (blend plan .*)\n((?:    .*\n)+)", TEXT)
    assert len(examples) == 2
    for command, expected in examples:
        result = CliRunner().invoke(app, command.split())
        assert result.exit_code == 0, result.exception
        printed = [" ".join(line.split()) for line in result.output.splitlines()]
        for line in expected.splitlines():
            assert " ".join(line.split()) in printed, result.output
