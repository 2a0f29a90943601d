"""Ids that recur are found whatever their number, in little memory, and the first of each stays."""

from __future__ import annotations

import errno
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.errors import UserError
from data_prep.intake.duplicates import Duplicates, Repeat


def naive(documents: list[tuple[str, str]]) -> dict[int, Repeat]:
    firsts: dict[str, int] = {}
    for ordinal, (identifier, _) in enumerate(documents):
        firsts.setdefault(identifier, ordinal)
    return {
        ordinal: Repeat(ordinal, firsts[identifier], documents[firsts[identifier]][1] == text)
        for ordinal, (identifier, text) in enumerate(documents)
        if firsts[identifier] != ordinal
    }


def found(folder: Path, documents: list[tuple[str, str]], held: int) -> dict[int, Repeat]:
    with Duplicates(folder, held) as duplicates:
        for document in documents:
            duplicates.add(*document)
        repeats = list(duplicates.repeats())
        assert list(folder.iterdir()) == []
    assert not folder.exists()
    assert duplicates.documents == len(documents)
    assert len({repeat.ordinal for repeat in repeats}) == len(repeats)
    return {repeat.ordinal: repeat for repeat in repeats}


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("abcdé"), st.sampled_from("xy")), max_size=12), st.integers(1, 5))
def test_they_are_those_of_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, documents: list[tuple[str, str]], held: int
) -> None:
    """A bucket that holds more of one id than memory may hold is split to the end of the hash."""
    assert found(tmp_path_factory.mktemp("in") / "buckets", documents, held) == naive(documents)


@pytest.mark.parametrize(("held", "kinds"), [(20, 1), (20, 30), (100, 100_000), (1 << 18, 500)])
def test_many_are_those_of_a_dictionary(tmp_path: Path, held: int, kinds: int) -> None:
    """Buckets are split once, several times or not at all."""
    drawn = random.Random(kinds)
    documents = [(str(drawn.randrange(kinds)), drawn.choice("xyz")) for _ in range(600)]
    assert found(tmp_path / "buckets", documents, held) == naive(documents)


def test_what_a_killed_run_left_does_not_count(tmp_path: Path) -> None:
    killed = Duplicates(tmp_path / "buckets", 1)
    killed.add("b", "x")
    assert found(tmp_path / "buckets", [("a", "x"), ("b", "x")], 1) == {}


def test_the_detail_tells_whether_the_text_is_the_same() -> None:
    assert Repeat(1, 0, True).detail == "another document has this id and the same text"
    assert Repeat(1, 0, False).detail == "another document has this id and another text"


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    duplicates = Duplicates(tmp_path / "buckets", 1)
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match="the disk is full; free some space"):
        duplicates.add("a", "x")


# Prints by how much finding the repeats of so many documents raised the most memory the process ever held [MB].
FINDER = """
import sys
from pathlib import Path
from data_prep.intake.duplicates import Duplicates

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024

before = peak()
with Duplicates(Path(sys.argv[1]), 1 << 15) as duplicates:
    for number in range(int(sys.argv[2])):
        duplicates.add(str(number % 900_000), "x")
    print(sum(1 for _ in duplicates.repeats()), peak() - before)
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_documents(tmp_path: Path) -> None:
    """Their records alone are 60 MB."""
    done = subprocess.run(
        [sys.executable, "-c", FINDER, tmp_path / "buckets", "2000000"], capture_output=True, text=True, check=True
    )
    repeats, grown = map(int, done.stdout.split())
    assert repeats == 2_000_000 - 900_000
    assert grown < 25
