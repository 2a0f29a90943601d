"""What is named is found in order; what is wrong with the whole call is one error before anything is read."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from intake_cases import told

from data_prep.errors import UserError
from data_prep.intake import Drop, IntakeSettings, read
from data_prep.records import Document

SETTINGS = IntakeSettings()


def tree(folder: Path, *names: str) -> None:
    """Files with one document each, whose text is the file's path."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name if name.endswith(".txt") else f'{{"text": "{name}"}}\n')


def texts(*inputs: Path | str) -> list[str]:
    return [text for kind, text in told(read(inputs, SETTINGS)) if kind == "text"]


def test_files_of_folders_and_globs_come_by_name_and_inputs_in_their_order(tmp_path: Path) -> None:
    names = ["a/2.jsonl", "a/10.jsonl", "a/x/1.json", "a/y.txt", "b.ndjson"]
    tree(tmp_path, *names)
    in_order = ["a/10.jsonl", "a/2.jsonl", "a/x/1.json", "a/y.txt"]
    assert texts(tmp_path / "b.ndjson", tmp_path / "a") == ["b.ndjson", *in_order]
    assert texts(tmp_path) == [*in_order, "b.ndjson"]
    assert texts(f"{tmp_path}/a/*.jsonl") == in_order[:2]
    assert texts(f"{tmp_path}/**/*.json*") == in_order[:3]
    assert texts(f"{tmp_path}/[ab]*") == [*in_order, "b.ndjson"]


def test_one_input_need_not_stand_in_a_list(tmp_path: Path) -> None:
    tree(tmp_path, "a.jsonl")
    for one in (tmp_path / "a.jsonl", str(tmp_path / "a.jsonl")):
        assert told(read(one, SETTINGS)) == [("text", "a.jsonl")]


def test_other_files_of_a_folder_are_drops_and_hidden_ones_are_left(tmp_path: Path) -> None:
    tree(tmp_path, "a.jsonl", "README.md", "_SUCCESS", ".a.jsonl.crc", ".git/b.jsonl")
    found = list(read(tmp_path, SETTINGS))
    assert sorted((Path(item.where).name, item.reason) for item in found if isinstance(item, Drop)) == [
        ("README.md", "other_kind"),
        ("_SUCCESS", "other_kind"),
    ]
    assert [item.text for item in found if isinstance(item, Document)] == ["a.jsonl"]


def test_a_link_to_a_folder_above_ends(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.jsonl", "elsewhere/2.jsonl")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "other").symlink_to(tmp_path / "elsewhere")
    assert texts(tmp_path / "a") == ["a/1.jsonl", "elsewhere/2.jsonl"]


def test_a_corpus_is_named_before_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "lang=en/1.jsonl", "plain/2.jsonl", "web=x.jsonl", "own.jsonl")
    (tmp_path / "own.jsonl").write_text('{"text": "own", "source": "row"}')
    monkeypatch.chdir(tmp_path)
    given = ["lang=en", "lang=en/*", "wiki=plain", "wiki=plain/*.jsonl", "web=x.jsonl", "wiki=own.jsonl"]
    found = [item.source for item in read(given, IntakeSettings(source="all")) if isinstance(item, Document)]
    assert found == ["all", "all", "wiki", "wiki", "all", "row"]


def test_a_name_that_utf8_cannot_hold_can_be_told(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl"))
    path.write_bytes(b"no JSON")
    (drop,) = read(path, SETTINGS)
    assert isinstance(drop, Drop) and drop.where.encode().endswith(rb"/\xff.jsonl:1")


WRONG: dict[str, tuple[Callable[[Path], list[Path | str]], str]] = {
    "nothing": (lambda folder: [], "inputs: there are none"),
    "no file": (lambda folder: [folder / "none.jsonl"], r"none\.jsonl: no such file"),
    "no file, relative": (lambda folder: ["none.jsonl"], r"none\.jsonl: no such file"),
    "no such relative path": (lambda folder: ["none/none.jsonl"], r"none/none\.jsonl: no such file"),
    "no folder": (lambda folder: [f"{folder}/a/b/none"], "none: no such file"),
    "no match": (lambda folder: [f"{folder}/*.parquet"], r"\*\.parquet: nothing matches"),
    "named, no file": (lambda folder: [f"wiki={folder}/none.jsonl"], r"none\.jsonl: no such file"),
    "other kind": (lambda folder: [folder / "in.csv"], r"in\.csv: a file of a kind that is not read; .*\.jsonl\.zst"),
    "other kind by glob": (lambda folder: [f"{folder}/i*.*"], r"in\.csv: a file of a kind that is not read"),
    "other kinds only": (lambda folder: [folder / "others"], "others: nothing in this folder is read"),
    "empty folder": (lambda folder: [folder / "empty"], "empty: nothing in this folder is read"),
    "gzip": (lambda folder: [folder / "gzip.jsonl"], r"gzip\.jsonl: the file is compressed by gzip; name it"),
    "zstd": (lambda folder: [folder / "zstd.jsonl"], r"zstd\.jsonl: the file is compressed by zstd; name it"),
    "parquet": (lambda folder: [folder / "parquet.jsonl"], r"parquet\.jsonl: the file is Parquet; name it"),
    "pipe": (lambda folder: [folder / "pipe.jsonl"], r"pipe\.jsonl: not a file"),
}


@pytest.mark.parametrize(("inputs", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_the_call_is_one_error_at_its_start(
    tmp_path: Path, inputs: Callable[[Path], list[Path | str]], message: str
) -> None:
    for name in ("in.csv", "others/a.csv", "good.jsonl"):
        tree(tmp_path, name)
    (tmp_path / "empty").mkdir()
    for name, content in (("gzip", gzip.compress(b"{}")), ("zstd", zstandard.compress(b"{}")), ("parquet", b"PAR1")):
        (tmp_path / f"{name}.jsonl").write_bytes(content)
    os.mkfifo(tmp_path / "pipe.jsonl")
    given = inputs(tmp_path)
    with pytest.raises(UserError, match=message):
        read([tmp_path / "good.jsonl", *given] if given else [], SETTINGS)
