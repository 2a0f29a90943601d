"""The loader gives what a plain loop gives, reads beside the step and never far ahead, and leaves nothing running."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import run_ranks

from data_prep.blend import plan
from data_prep.errors import UserError
from data_prep.settings import BlendSettings
from megatron_ipt.data import loader
from megatron_ipt.data.loader import AHEAD, Loader, steps
from megatron_ipt.data.stream import BlendStream, Sample
from megatron_ipt.mcore import device

WAIT = 30.0  # seconds after which a test that would never end fails
SHARE = Path(__file__).with_name("share_worker.py")


@pytest.fixture
def stream(tmp_path: Path, write_dataset) -> BlendStream:
    write_dataset(tmp_path / "one", [[10 + i, *range(200, 200 + i % 23), 0] for i in range(100)])
    write_dataset(tmp_path / "two", [[7, 8, 0], [9, 0]])
    sources = {name: {"prefix": name, "weight": weight} for name, weight in (("one", 3), ("two", 1))}
    plan(BlendSettings(sources=sources, seq_length=16, period=8, allow=("short_source",)), tmp_path / "out", tmp_path)
    return BlendStream(tmp_path / "out/blend.json")


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def numbered(index: int) -> Sample:
    """A sample whose tokens are its number."""
    row = np.full(4, index)
    return Sample(row, row + 1, np.ones(4, np.float32), np.arange(4), "one", (), np.zeros(4, np.int64))


def first_tokens(batches: list[loader.Batch]) -> list[int]:
    return [int(token) for batch in batches for token in batch["tokens"][:, 0]]


@pytest.mark.parametrize(("rank", "size", "micro_batch_size"), [(0, 1, 4), (0, 1, 3), (1, 2, 2), (3, 4, 1)])
def test_steps_are_those_of_a_plain_loop(stream: BlendStream, rank: int, size: int, micro_batch_size: int) -> None:
    first, count, batch = 40, 5, 8
    seen = 0
    with Loader(stream.sample, steps(first, first + count * batch, batch, rank, size), micro_batch_size) as found:
        for step, batches in enumerate(found):
            mine = [first + step * batch + place for place in range(rank, batch, size)]
            groups = [mine[at : at + micro_batch_size] for at in range(0, len(mine), micro_batch_size)]
            assert len(batches) == len(groups)
            for group, tensors in zip(groups, batches, strict=True):
                for name in ("tokens", "labels", "loss_mask", "position_ids"):
                    expected = torch.stack([torch.from_numpy(getattr(stream.sample(i), name)) for i in group])
                    assert tensors[name].dtype == expected.dtype
                    assert torch.equal(tensors[name].cpu(), expected)
            seen += 1
    assert seen == count


def test_the_next_step_is_read_while_this_one_runs() -> None:
    began, step_is_over = threading.Event(), threading.Event()

    def sample(index: int) -> Sample:
        if index == 2:
            began.set()
            assert step_is_over.wait(WAIT)
        return numbered(index)

    with Loader(sample, steps(0, 4, 2, 0, 1), 2) as found:
        assert first_tokens(next(found)) == [0, 1]  # though the second step cannot be read yet
        assert began.wait(WAIT)  # and it is being read before it is asked for
        step_is_over.set()
        assert first_tokens(next(found)) == [2, 3]


def test_two_steps_are_read_before_the_first_is_asked_for() -> None:
    read = threading.Event()

    def sample(index: int) -> Sample:
        if index == 3:  # the last of the second step
            read.set()
        return numbered(index)

    with Loader(sample, steps(0, 100, 2, 0, 1), 2):
        assert read.wait(WAIT)


def test_who_leaves_does_not_wait_for_steps_that_were_not_begun() -> None:
    begun, leave = list[int](), threading.Event()

    def sample(index: int) -> Sample:
        begun.append(index)
        assert leave.wait(WAIT)
        return numbered(index)

    with Loader(sample, steps(0, 100, 1, 0, 1), 1):
        while not begun:
            time.sleep(0.001)
        threading.Timer(0.2, leave.set).start()  # while the context is left
    assert begun == [0, 0]  # the first is read for its layout too


def test_samples_of_an_odd_length_lie_in_a_block_too() -> None:
    """Three float32 of a mask before an int64 would put that at an address that is no multiple of 8."""

    def sample(index: int) -> Sample:
        row = np.full(3, index)
        return Sample(row, row + 1, np.full(3, index, np.float32), np.arange(3), "one", (), np.zeros(3, np.int64))

    with Loader(sample, steps(0, 2, 1, 0, 1), 1) as found:
        assert [int(batch["labels"][0, 2]) for step in found for batch in step] == [1, 2]


def test_the_wait_has_all_that_a_step_waits_for_in_it() -> None:
    def share(block: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return block

    with Loader(numbered, steps(0, 2, 2, 0, 1), 2, share=share) as found:
        next(found)
        assert found.waited >= 0.05


def test_no_more_is_read_than_is_bounded() -> None:
    given: list[range] = []

    def endless() -> Iterator[range]:
        for step in steps(0, 10**12, 2, 0, 1):
            given.append(step)
            yield step

    with Loader(numbered, endless(), 2) as found:
        for taken in range(1, 4):
            next(found)
            assert len(given) <= taken + AHEAD


def test_what_reading_raises_comes_in_its_turn_and_as_it_is() -> None:
    fault = UserError("here", "the disk is gone", "plug it in")

    def sample(index: int) -> Sample:
        if index == 3:
            raise fault
        return numbered(index)

    with Loader(sample, steps(0, 8, 2, 0, 1), 2) as found:
        assert first_tokens(next(found)) == [0, 1]
        with pytest.raises(UserError) as raised:
            next(found)
        assert raised.value is fault
        with pytest.raises(StopIteration):  # a step is never left out
            next(found)


def test_the_very_first_sample_may_fail_too() -> None:
    def sample(index: int) -> Sample:
        raise OSError("no such blend")

    with Loader(sample, steps(0, 8, 2, 0, 1), 2) as found, pytest.raises(OSError, match="no such blend"):
        next(found)


def test_a_step_that_fails_ends_the_loader() -> None:
    with pytest.raises(ZeroDivisionError), Loader(numbered, steps(0, 100, 2, 0, 1), 2) as found:
        next(found)
        raise ZeroDivisionError


def test_the_wait_is_measured_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands still but for what a sample takes once it is waited for."""
    now, asked = [0.0], threading.Event()

    def clock() -> float:
        asked.set()
        return now[0]

    def sample(index: int) -> Sample:
        if index == 1:
            assert asked.wait(WAIT)
            now[0] += 7.0
        return numbered(index)

    monkeypatch.setattr(loader, "time", SimpleNamespace(perf_counter=clock))
    with Loader(sample, steps(0, 4, 2, 0, 1), 2) as found:
        next(found)
        assert found.waited == 7.0
        next(found)
        assert found.waited == 0.0


def test_one_rank_of_a_tensor_parallel_group_reads_for_all(tmp_path: Path) -> None:
    run_ranks(2, SHARE, tmp_path)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert one["read"] == [0, *range(8)]  # the first sample once more: it gives the shapes
    assert other["read"] == [0]
    for mine, theirs in zip(one["steps"], other["steps"], strict=True):
        for batch, copy in zip(mine, theirs, strict=True):
            assert batch.keys() == copy.keys()
            assert all(torch.equal(batch[name], copy[name]) for name in batch)
    tokens = [token for batches in other["steps"] for token in first_tokens(batches)]
    assert tokens == list(range(8))


@pytest.mark.skipif(not device.has_gpu(), reason="pinned memory needs a GPU")
def test_on_a_gpu_host_memory_is_pinned() -> None:
    with Loader(numbered, steps(0, 4, 2, 0, 1), 2) as found:
        assert next(found)[0]["tokens"].is_cuda
        assert loader.read_step(numbered, range(2), loader.Layout.of(numbered(0)), True).is_pinned()
