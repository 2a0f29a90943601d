"""A checkpoint's files are hashed by all ranks together, each its share; a fault of one is one line on all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import run_ranks

WORKER = Path(__file__).with_name("integrity_worker.py")
FILES = {
    ".metadata": b"m" * 70,
    "__0_0.distcp": b"a" * 5_000,
    "__0_1.distcp": b"b" * 4_000,
    "__1_0.distcp": b"c" * 3_000,
    "run_card.json": b"{}",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder, and what each of two ranks had."""
    root = tmp_path_factory.mktemp("integrity")
    (root / "files").mkdir()
    for name, content in FILES.items():
        (root / "files" / name).write_bytes(content)
    run_ranks(2, WORKER, root)
    return root, [json.loads((root / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def test_the_list_is_megatrons_own_to_the_byte(found: tuple[Path, list[dict[str, Any]]]) -> None:
    text = (found[0] / "files" / "integrity.json").read_text(encoding="utf-8")
    assert json.loads(text)["files"] == {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    assert text == (found[0] / "theirs.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("when", ["written", "verified"])
def test_each_rank_takes_its_share(found: tuple[Path, list[dict[str, Any]]], when: str) -> None:
    """By size: 5,000 | 4,000; then 3,000 to the second, and the small ones to the first."""
    shares = [set(row[when]) for row in found[1]]
    assert shares == [{"__0_0.distcp", ".metadata", "run_card.json"}, {"__0_1.distcp", "__1_0.distcp"}]
    assert [row["shares"] for row in found[1]] == [[["a", "d"], ["b", "c", "e"]]] * 2


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("unreadable", "Input/output error"),  # of the second rank alone
        ("changed", "__1_0.distcp: another hash than integrity.json gives"),
        ("missing", "__1_0.distcp is missing"),
        ("no_list", "integrity.json is of another format"),
    ],
)
def test_a_fault_is_one_line_on_every_rank(found: tuple[Path, list[dict[str, Any]]], fault: str, line: str) -> None:
    folder, rows = found
    first, second = (row[fault] for row in rows)
    assert first == second
    assert first.startswith(f"{folder / 'files'}: not as it was written (") and line in first
    assert first.endswith("; use another checkpoint") and "\n" not in first


def test_right_files_pass(found: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [row["right"] for row in found[1]] == ["as it was written"] * 2


def test_what_no_list_vouches_for_is_opened_where_it_is_trusted_alone(
    found: tuple[Path, list[dict[str, Any]]],
) -> None:
    for row in found[1]:
        assert "integrity.json does not list this file" in row["foreign"] and "--trust-checkpoint" in row["foreign"]
        assert "not as it was written" in row["unlisted"]
        trusted = [row[f"{what}_and_trusted"] for what in ("right", "foreign", "unlisted")]
        assert trusted == ["as it was written"] * 3
        assert row["changed_and_trusted"] == row["changed"]  # damage is no matter of trust
