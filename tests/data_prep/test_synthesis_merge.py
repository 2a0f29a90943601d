"""The last tasks of an array where the file system has no locks: both write the files, and neither spoils them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from synthesis_files import ALL, KINDS

from data_prep.errors import UserError
from data_prep.readers import read_jsonl, write_jsonl
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis import retry_failed, synthesize
from data_prep.synthesis.merge import merge

SETTINGS = SynthesizeSettings(engine="rules", shard_documents=5)
TEXT = "The kiln of number {0}\n\nA kiln is an oven for bricks. It burned in 18{0:02}; therefore it was rebuilt. "


class Killed(BaseException):
    """As from a signal."""


def start(out: Path, index: int = 0, count: int = 1) -> dict[str, Any] | None:
    return synthesize(SETTINGS, out.with_name("in.jsonl"), None, out, shard_index=index, num_shards=count)


def outputs(out: Path) -> dict[str, Any]:
    """What is there; of the summary what does not tell of one run's time."""
    summary = json.loads(Path(f"{out}.summary.json").read_bytes())
    timed = ("seconds", "tokens_per_second", "new_completion_tokens")
    found: dict[str, Any] = {kind: Path(f"{out}{kind}").read_bytes() for kind in KINDS}
    return {**found, "summary": {key: value for key, value in summary.items() if key not in timed}}


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run all of whose shards are done, and killed before the files are written; an older summary lies there."""
    write_jsonl(tmp_path / "in.jsonl", [{"id": f"d{i}", "text": TEXT.format(i)} for i in range(12)] + [{"id": "x"}])
    out = tmp_path / "c.jsonl"

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.synthesis.merge", killed)
        with pytest.raises(Killed):
            start(out)
    Path(f"{out}.merge.lock").unlink(missing_ok=True)
    Path(f"{out}.summary.json").write_text('{"made_of": {}}')
    return out


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


@pytest.mark.parametrize("step", range(26))
def test_a_task_that_writes_the_files_while_another_does_spoils_nothing(
    out: Path, monkeypatch: pytest.MonkeyPatch, step: int
):
    """The second writes all of them before the `step`-th thing that the first does with a file."""
    monkeypatch.setattr("data_prep.locks.fcntl.flock", no_locks)
    told: list[dict[str, Any] | None] = []
    steps = 0

    def meets() -> None:
        nonlocal steps
        steps += 1
        if steps == step + 1:
            told.append(start(out, 1, 2))

    def counted(does: Callable[..., Any]) -> Callable[..., Any]:
        def done(*arguments: Any, **options: Any) -> Any:
            meets()
            return does(*arguments, **options)

        return done

    def rows(path: Path) -> Iterator[dict[str, Any]]:
        meets()
        yield from read_jsonl(path)

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[merge.__module__], "read_jsonl", rows)
        for owner, name in ((Path, "replace"), (Path, "unlink"), (Path, "rename"), (os, "rmdir")):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        told.append(start(out, 0, 2))
    assert len(told) == 2 or step > 20  # it does fewer things
    check_that_all_is_there(out, told)


@pytest.mark.parametrize("written", range(1, 6))
def test_a_kill_between_two_of_the_files_leaves_what_is_gone_on_with(
    out: Path, monkeypatch: pytest.MonkeyPatch, written: int
):
    """An older run's summary beside files of this one vouches for nothing, and its failed texts are not asked about."""
    replace, left = Path.replace, list(range(written))

    def killed(path: Path, target: Path) -> Path:
        if not left:
            raise Killed
        left.pop()
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(Killed):
            start(out)
    with pytest.raises(UserError, match=r"c\.jsonl\.work: a run is on its way there; finish it first"):
        retry_failed(SETTINGS, None, out)
    check_that_all_is_there(out, [start(out)])


PROCESS = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[3])))
from test_synthesis_merge import no_locks, start
import data_prep.locks, data_prep.synthesis

def together(*arguments):
    Path(sys.argv[2], f"here-{os.getpid()}").touch()
    while len(list(Path(sys.argv[2]).glob("here-*"))) < 2:
        os.sched_yield()
    return merge(*arguments)

data_prep.locks.fcntl.flock = no_locks
merge, data_prep.synthesis.merge = data_prep.synthesis.merge, together
print(json.dumps(start(Path(sys.argv[1]))))
"""


def test_two_processes_that_write_the_files_at_once_leave_them_whole(out: Path, tmp_path: Path):
    (tmp_path / "marks").mkdir()
    command = [sys.executable, "-c", PROCESS, str(out), str(tmp_path / "marks"), str(Path(__file__).parent)]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    try:
        said = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said
    for mark in (tmp_path / "marks").iterdir():
        mark.unlink()
    (tmp_path / "marks").rmdir()
    check_that_all_is_there(out, [json.loads(printed) for printed, _ in said])


def check_that_all_is_there(out: Path, told: list[dict[str, Any] | None]) -> None:
    """The bytes are those of one task by itself, both were told so, and nothing else is left."""
    assert {path.name for path in out.parent.iterdir()} == {"in.jsonl", *(f"{out.name}{kind}" for kind in ALL)}
    found = outputs(out)
    assert all(summary is not None and summary["chains"] == found["summary"]["chains"] for summary in told)
    alone = out.with_name("alone.jsonl")
    assert start(alone) and found == outputs(alone)
    assert found["summary"]["rows"] == 13 and found["summary"]["documents"] == 12
