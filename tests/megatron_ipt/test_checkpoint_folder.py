"""The folder of checkpoints: what stands there when a save is cut short, and what a start finds."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture
from megatron_ipt.mcore import checkpoint_folder as folders
from megatron_ipt.mcore import checkpoint_lock as locks
from megatron_ipt.mcore.run_card import RunCard, SavedLayout
from megatron_ipt.settings import TrainSettings

ARCHITECTURE = Architecture(4, 64, 176, 8, 4, 8, 1e-5, 1e4, 512)


class Cut(BaseException):
    """Stands for the end of the process."""


def card(iteration: int) -> RunCard:
    return RunCard(iteration, 8 * iteration, ARCHITECTURE, 512, "", "", {}, {})


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


def test_without_latest_the_newest_is_found_by_its_number(tmp_path: Path) -> None:
    """To begin anew would write over the checkpoints that are there."""
    for iteration in (9_999_999, 10_000_000, 3):
        commit(tmp_path, iteration, "text")
    (tmp_path / folders.LATEST).unlink()
    for name in ("iter_99999999.partial", "iter_99999999.before", "iter_99999999_mine", "iter_mine", "iter_9"):
        (tmp_path / name).mkdir()
    (tmp_path / "iter_99999999").write_text("not a folder", encoding="utf-8")
    newest = tmp_path / "iter_10000000"
    assert folders.latest(tmp_path) == newest
    assert [path.name for path in folders.older(newest)] == ["iter_9999999", "iter_0000003"]
    assert folders.latest(tmp_path / "nowhere") is None


@pytest.mark.parametrize("content", [b"", b"-1", b"\xff\xfe", "\u00b2".encode(), b"3 4"])
def test_a_latest_that_is_no_number_is_refused(tmp_path: Path, content: bytes) -> None:
    commit(tmp_path, 3, "text")
    (tmp_path / folders.LATEST).write_bytes(content)
    with pytest.raises(UserError, match="not an iteration; write the number of an iter_"):
        folders.latest(tmp_path)


def test_a_latest_that_names_nothing_is_refused(tmp_path: Path) -> None:
    commit(tmp_path, 3, "text")
    (tmp_path / folders.LATEST).write_text("4", encoding="utf-8")
    with pytest.raises(UserError, match="names iter_0000004, which is not there; restore it or write another"):
        folders.latest(tmp_path)


def test_one_that_is_named_without_its_card_is_told_as_such(tmp_path: Path) -> None:
    commit(tmp_path, 3, "text")
    with pytest.raises(UserError, match=r"iter_0000003: not a whole checkpoint \(run_card\.json is missing\)"):
        folders.resolve(tmp_path / "iter_0000003")
    with pytest.raises(UserError, match="nowhere: no checkpoint there"):
        folders.resolve(tmp_path / "nowhere")


def test_one_run_at_a_time_saves_into_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = tmp_path / "run" / "checkpoints"
    first = locks.locked(saves)
    with pytest.raises(UserError, match=rf"{saves}: another run saves there \(process {os.getpid()} on "):
        locks.locked(saves)
    (saves / locks.LOCK).write_text("another-machine 7", encoding="utf-8")
    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"process 7 on another-machine\); wait for its end, or give another"):
        locks.locked(saves)
    assert time.monotonic() - began >= 0.5  # its lease may run out
    first.close()
    with locks.locked(saves):
        assert (saves / locks.LOCK).read_text(encoding="utf-8") == f"{socket.gethostname()} {os.getpid()}"
    locks.give_back(locks.locked(saves), saves)
    assert not saves.exists()
    with pytest.raises(UserError, match=r"latest: checkpoints cannot be written there \(.*; give another one"):
        (tmp_path / "latest").touch()
        locks.locked(tmp_path / "latest")


@pytest.mark.parametrize(
    ("most_recent_k", "retain_interval", "kept"),
    [
        (None, None, [2, 4, 6, 8, 10, 12]),
        (2, None, [8, 10, 12]),  # 12 is of another run's end: not ours to remove
        (None, 4, [4, 8, 10, 12]),
        (2, 6, [6, 8, 10, 12]),
        (9, None, [2, 4, 6, 8, 10, 12]),
    ],
)
def test_the_newest_and_every_nth_are_kept(
    tmp_path: Path, most_recent_k: int | None, retain_interval: int | None, kept: list[int]
) -> None:
    for iteration in range(2, 14, 2):
        commit(tmp_path, iteration, "text")
    folders.partial_of(folders.folder_of(tmp_path, 1)).mkdir()
    folders.remove(folders.not_kept(tmp_path, 10, most_recent_k, retain_interval))
    names = [f"iter_{number:07d}" for number in kept]
    assert sorted(path.name for path in tmp_path.glob("iter_*")) == ["iter_0000001.partial", *names]
    assert [path.name for path in folders.older(tmp_path / "iter_0000010")] == names[-3::-1]


def test_half_of_a_checkpoint_that_is_removed_does_not_bear_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for iteration in (2, 3):
        commit(tmp_path, iteration, "text")
    calls: list[tuple[str, str]] = []
    recorded(monkeypatch, calls, 2)
    with pytest.raises(Cut):
        folders.remove([tmp_path / "iter_0000002"])
    assert calls[-1] == ("rename", "iter_0000002")
    assert [path.name for path in folders.older(tmp_path / "iter_0000003")] == []


def test_the_mend_of_a_full_disk_says_what_is_left(tmp_path: Path) -> None:
    assert folders.mend(tmp_path).endswith("nothing was there before")
    commit(tmp_path, 3, "text")
    assert folders.mend(tmp_path).endswith("start again; iter_0000003 is untouched")
    assert " GiB are free there: make room" in folders.mend(tmp_path)


def test_without_the_distributed_optimizer_both_sides_must_have_the_same_precision(tmp_path: Path) -> None:
    plain = replace(LAYOUT, use_distributed_optimizer=False)
    written = replace(card(3), layout=plain, sharding_type="")
    assert written.loads_with == "any layout"
    written.check_loads(replace(plain, tensor_model_parallel_size=1), tmp_path)
    with pytest.raises(UserError, match=r"is of train\.bf16=true, here is false; set train\.bf16=true"):
        written.check_loads(replace(plain, bf16=False), tmp_path)


LAYOUT = SavedLayout(2, 2, 1, 4, ((1, 1), (1, 1)), None, use_distributed_optimizer=True, bf16=True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data_parallel_size": 8, "context_parallel_size": 2}, None),
        ({"tensor_model_parallel_size": 1}, "loads with TP2 PP2 VPP2 and any DP, here is TP1 PP2 VPP2;"),
        ({"layers": ((2,), (2,))}, "loads with TP2 PP2 VPP2 and any DP, here is TP2 PP2;"),
        ({"layers": ((1, 2), (1, 0))}, "loads with TP2 PP2 VPP2, layers 1+1 | 1+1 and any DP, here is"),
        ({"bucket_size": 40_000_000}, "VPP2, one bucket (overlap_grad_reduce, ddp_config.bucket_size) and any DP"),
        ({"bf16": False}, "loads with TP2 PP2 VPP2, bf16=true and any DP, here is TP2 PP2 VPP2, bf16=false;"),
        ({"use_distributed_optimizer": False}, "is of train.use_distributed_optimizer=true, here is false"),
    ],
)
def test_a_card_says_which_layouts_load_it(tmp_path: Path, change: dict[str, Any], told: str | None) -> None:
    written = replace(card(3), layout=LAYOUT, sharding_type="dp_reshardable")
    folders.write_card(tmp_path, written)
    assert json.loads((tmp_path / "run_card.json").read_text())["loads_with"] == "TP2 PP2 VPP2 and any DP"
    read = RunCard.read(tmp_path)
    assert read == written
    here = replace(LAYOUT, **change)
    if told is None:
        read.check_loads(here, tmp_path)
        return
    with pytest.raises(UserError) as caught:
        read.check_loads(here, tmp_path)
    assert told in str(caught.value)


def test_a_card_of_the_first_version_is_read(tmp_path: Path) -> None:
    """As the version before wrote it; its layout is that of its recipe."""
    train = {"tensor_model_parallel_size": 2, "seq_length": 64, "use_distributed_optimizer": True, "bf16": False}
    row = {
        **{"format_version": 1, "iteration": 3, "consumed_samples": 24, "architecture": ARCHITECTURE.to_json()},
        **{"padded_vocab_size": 512, "blend_hash": "", "load_hf": "", "versions": {}, "recipe": {"train": train}},
    }
    (tmp_path / "run_card.json").write_text(json.dumps(row), encoding="utf-8")
    read = RunCard.read(tmp_path)
    assert (read.consumed_tokens, read.parent, read.sharding_type) == (1536, "", "fully_reshardable")
    assert read.layout is not None and read.layout.tensor_model_parallel_size == 2
    read.check_loads(LAYOUT, tmp_path)
    with pytest.raises(UserError, match=r"set train\.use_distributed_optimizer=true, or load the weights alone"):
        read.check_loads(replace(LAYOUT, use_distributed_optimizer=False), tmp_path)


def test_weights_alone_are_no_state_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds weights, no optimizer's state; begin with it: train\.finetune=true"):
        replace(card(0), sharding_type="weights alone").check_loads(LAYOUT, tmp_path)


@pytest.mark.parametrize("version", [0, 3, None])
def test_a_card_of_another_version_is_refused(tmp_path: Path, version: int | None) -> None:
    (tmp_path / "run_card.json").write_text(json.dumps({"format_version": version}), encoding="utf-8")
    with pytest.raises(UserError, match="not format version 2"):
        RunCard.read(tmp_path)


def _with(row: dict[str, Any], *keys: str, **values: Any) -> dict[str, Any]:
    return {key: value for key, value in {**row, **values}.items() if key not in keys}


@pytest.mark.parametrize(
    "change",
    [
        lambda row: _with(row, a_key_of_another_version=1),
        lambda row: _with(row, "iteration"),
        lambda row: _with(row, "layout"),
        lambda row: _with(row, architecture=_with(row["architecture"], experts=8)),
        lambda row: _with(row, architecture=_with(row["architecture"], "num_layers")),
        lambda row: _with(row, architecture=[]),
        lambda row: _with(row, layout=_with(row["layout"], "bf16")),
    ],
)
def test_a_card_with_other_keys_is_one_line(tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    row = replace(card(3), layout=LAYOUT).to_json()
    (tmp_path / "run_card.json").write_text(json.dumps(change(row)), encoding="utf-8")
    with pytest.raises(UserError, match=r"not a card of this version of ipt .*; use the version of ipt that wrote it"):
        RunCard.read(tmp_path)


def test_every_nth_save_and_the_last_load_with_any_layout() -> None:
    settings = {"global_batch_size": 1, "seq_length": 8, "train_iters": 9, "lr": 1.0, "save_interval": 2}
    cheap = {"dist_ckpt_optim_fully_reshardable": False}
    plain, never, third = (
        TrainSettings.model_validate({**settings, **more})
        for more in ({}, cheap, {**cheap, "fully_reshardable_interval": 3})
    )
    saves = [2, 4, 6, 8, 10, 12]
    assert all(plain.is_fully_reshardable(number, last=False) for number in saves)
    assert not any(never.is_fully_reshardable(number, last=False) for number in saves)
    assert never.is_fully_reshardable(9, last=True)
    assert [number for number in saves if third.is_fully_reshardable(number, last=False)] == [6, 12]
    with pytest.raises(ValueError, match="needs dist_ckpt_optim_fully_reshardable: false"):
        TrainSettings.model_validate({**settings, "fully_reshardable_interval": 3})
