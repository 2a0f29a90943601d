"""The folder of checkpoints: what stands there when a save is cut short, and what a start finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ipt.architecture import Architecture
from megatron_ipt.mcore import checkpoint_folder as folders

ARCHITECTURE = Architecture(4, 64, 176, 8, 4, 8, 1e-5, 1e4, 512)


class Cut(BaseException):
    """Stands for the end of the process."""


def card(iteration: int) -> folders.RunCard:
    return folders.RunCard(iteration, 8 * iteration, ARCHITECTURE, 512, "", "", {}, {})


def commit(root: Path, iteration: int, text: str) -> None:
    final = folders.folder_of(root, iteration)
    partial = folders.partial_of(final)
    folders.fresh_folder(partial)
    (partial / "shard").write_text(text, encoding="utf-8")
    folders.commit(partial, final, card(iteration))


def recorded(monkeypatch: pytest.MonkeyPatch, calls: list[tuple[str, str]], cut_before: int) -> None:
    """Note each call that changes the folder or brings it to the disk, and end before the one of this number."""

    def watch(owner: Any, name: str, plain: Callable[..., Any]) -> None:
        def watched(path: Any, *arguments: Any, **options: Any) -> Any:
            if len(calls) == cut_before:
                raise Cut
            calls.append((name, Path(path).name))
            return plain(path, *arguments, **options)

        monkeypatch.setattr(owner, name, watched)

    watch(folders, "_to_disk", folders._to_disk)
    watch(folders.shutil, "rmtree", folders.shutil.rmtree)
    watch(Path, "rename", Path.rename)
    watch(Path, "replace", Path.replace)


def test_all_is_on_the_disk_before_latest_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []
    recorded(monkeypatch, calls, -1)
    commit(tmp_path, 3, "new")
    assert calls[:6] == [
        ("_to_disk", "shard"),
        ("_to_disk", "iter_0000003.partial"),
        ("rename", "iter_0000003.partial"),
        ("_to_disk", tmp_path.name),
        ("_to_disk", "latest_checkpointed_iteration.partial"),
        ("replace", "latest_checkpointed_iteration.partial"),
    ]
    assert calls[6] == ("_to_disk", tmp_path.name)


def test_an_iteration_written_anew_is_there_at_every_moment(tmp_path: Path) -> None:
    """The process ends before each of its calls in turn: `latest` finds the old one whole, or the new one."""
    found = []
    for number in range(12):
        root = tmp_path / str(number)
        root.mkdir()
        commit(root, 3, "old")
        with pytest.MonkeyPatch.context() as patch:
            recorded(patch, [], number)
            try:
                commit(root, 3, "new")
            except Cut:
                found.append("cut")
        newest = folders.latest(root)
        assert newest is not None
        found.append((newest / "shard").read_text(encoding="utf-8"))
        commit(root, 3, "newer")  # the next save finds its way
        assert (root / "iter_0000003" / "shard").read_text(encoding="utf-8") == "newer"
        assert [path.name for path in root.glob("iter_*")] == ["iter_0000003"]
    assert found.count("old") == 5 and found[-2:] != ["cut", "old"] and found[-1] == "new"
