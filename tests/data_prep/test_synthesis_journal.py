"""The journal: what it finds again, and what a disk that gets full leaves of it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.synthesis.engines import Completion, Request
from data_prep.synthesis.journal import Journal

MADE = Completion("<QUE> q <ANS> a </END>", "stop", 3, 9)


class Filling:
    """A stream on a disk with room for `room` bytes more: it takes a part of a write, then none."""

    def __init__(self, stream, room: int) -> None:
        self.stream, self.room = stream, room

    def write(self, data: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self.stream.write(data[: self.room])
        self.room -= taken
        return taken

    def fileno(self) -> int:
        return self.stream.fileno()

    def close(self) -> None:
        self.stream.close()


@pytest.mark.parametrize("lines", [0, 0.01, 0.9, 1, 1.5, 2.01, 2.99])
def test_a_disk_that_gets_full_within_a_line_is_told_and_what_was_whole_is_found(tmp_path: Path, lines: float):
    requests = [Request([1, 2, number], "", 7) for number in range(3)]
    with Journal(tmp_path / "one.jsonl", {"engine": "x"}) as journal:
        journal.add([(requests[0], MADE)])
    room = int((tmp_path / "one.jsonl").stat().st_size * lines)
    with Journal(tmp_path / "j.jsonl", {"engine": "x"}) as journal:
        journal._stream = Filling(journal._stream, room)  # type: ignore[assignment]
        with pytest.raises(UserError, match="the disk is full"):
            for request in requests:
                journal.add([(request, MADE)])
    with Journal(tmp_path / "j.jsonl", {"engine": "x"}) as journal:
        found = [journal.find(request) for request in requests]
        assert found == [MADE] * int(lines) + [None] * (3 - int(lines))
        journal.add([(request, MADE) for request in requests])
    with Journal(tmp_path / "j.jsonl", {"engine": "x"}) as journal:
        assert [journal.find(request) for request in requests] == [MADE] * 3
    with Journal(tmp_path / "j.jsonl", {"engine": "y"}) as journal:
        assert journal.find(requests[0]) is None
