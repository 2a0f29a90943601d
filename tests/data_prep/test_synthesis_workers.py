"""Workers in processes of their own, killed and not: the bytes are those of one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from dying_job import DyingJob
from scripted_engine import ScriptedEngine
from synthesis_files import outputs
from telling_job import TellingJob
from tokenizers_for_tests import llama3_like

from data_prep.errors import UserError
from data_prep.readers import read_jsonl, write_jsonl
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis import synthesize
from data_prep.synthesis.engines import Completion, Request, make_engine
from data_prep.synthesis.executors import Job, make_prompter
from data_prep.synthesis.identity import identity_of
from data_prep.synthesis.ray_executor import ShardActor
from data_prep.synthesis.shard import open_shard
from data_prep.synthesis.wire import byte_wire
from data_prep.synthesis.work import begin
from data_prep.synthesis.worker import Worker

TEXT = "The kiln of number {0}\n\nA kiln is an oven for bricks. It burned in 18{0:02}; therefore it was rebuilt. "


def settings(**values: Any) -> SynthesizeSettings:
    return SynthesizeSettings(engine="rules", shard_documents=5, rounds=3, **values)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 documents, one of them twice, one of them only spaces."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rows: list[dict[str, Any]] = [{"id": f"d{i}", "text": TEXT.format(i) * (1 + i % 3)} for i in range(40)]
    write_jsonl(path, [*rows[:20], {"id": "d3", "text": "again"}, {"id": "x", "text": " "}, *rows[20:]])
    return path


@pytest.fixture(scope="module")
def whole(corpus: Path) -> dict[str, bytes]:
    out = corpus.with_name("whole.jsonl")
    summary = synthesize(settings(), corpus, None, out)
    assert summary is not None
    assert summary["rows"] == 42 == summary["documents"] + sum(summary["dropped"].values())
    assert summary["dropped"] == {"duplicate_id": 1, "only_spaces": 1} and summary["pairs"] > 40
    dropped = {row["where"].rpartition(":")[2]: row["reason"] for row in read_jsonl(f"{out}.dropped.jsonl")}
    assert dropped == {"21": "duplicate_id", "22": "only_spaces"}
    return outputs(out)


@pytest.mark.parametrize("workers", [2, 3])
def test_several_processes_write_the_same_bytes_as_one(
    tmp_path: Path, corpus: Path, whole: dict[str, bytes], workers: int
):
    told = []
    summary = synthesize(settings(workers=workers), corpus, None, tmp_path / "c.jsonl", told.append)
    assert outputs(tmp_path / "c.jsonl") == whole and summary is not None
    assert told[-1].documents == 40 == summary["documents"] and told[-1].pairs == summary["pairs"]


KILLED = """
import os, signal, sys
from pathlib import Path
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis import synthesize
from data_prep.synthesis.engines.rules import RulesEngine

class Dies(RulesEngine):
    left = int(sys.argv[3])

    async def generate(self, requests):
        Dies.left -= 1
        if Dies.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().generate(requests)

from data_prep.synthesis.shard import open_shard
from data_prep.synthesis.wire import byte_wire
engine = Dies(count=lambda text: len(byte_wire().encode(text)))
settings = SynthesizeSettings(engine="rules", shard_documents=5, rounds=3)
synthesize(settings, Path(sys.argv[1]), None, Path(sys.argv[2]), engine=engine)
"""


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path, corpus: Path, whole: dict[str, bytes]):
    out = tmp_path / "c.jsonl"
    for calls in (0, 7, 13):
        command = [sys.executable, "-c", KILLED, str(corpus), str(out), str(calls)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not out.exists()
    finished = len(list(Path(f"{out}.work/results").iterdir()))
    assert finished >= 1 or any(Path(f"{out}.work/journal").iterdir())
    synthesize(settings(), corpus, None, out)
    assert outputs(out) == whole


def test_a_worker_that_dies_leaves_its_shards_to_others(
    tmp_path: Path,
    corpus: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    mark = tmp_path / "died"
    monkeypatch.setenv("IPT_TEST_DIES_ONCE", str(mark))
    monkeypatch.setattr("data_prep.synthesis.Job", DyingJob)
    synthesize(settings(workers=2), corpus, None, tmp_path / "c.jsonl")
    assert mark.exists() and "workers died (exit code -9)" in caplog.text
    assert outputs(tmp_path / "c.jsonl") == whole


@pytest.mark.parametrize(("engine", "seen"), [("transformers", ["3", "5"]), ("rules", ["3,5", "3,5"])])
def test_each_worker_is_started_with_gpus_of_its_own(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, engine: Any, seen: list[str]
):
    (tmp_path / "told").mkdir()
    monkeypatch.setenv("IPT_TEST_TELLS", str(tmp_path / "told"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr("data_prep.synthesis.Job", TellingJob)
    model = llama3_like(tmp_path / "model") if engine != "rules" else None
    options = SynthesizeSettings(engine=engine, shard_documents=20, workers=2)
    assert synthesize(options, corpus, model, tmp_path / "c.jsonl")
    assert sorted(path.read_text() for path in (tmp_path / "told").iterdir()) == seen
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


def test_an_engine_that_cannot_be_made_is_one_line_from_any_worker(tmp_path: Path, corpus: Path):
    options = SynthesizeSettings(engine="server", shard_documents=5, workers=2)
    with pytest.raises(UserError, match=r"--model: no synthesizer is named"):
        synthesize(options, corpus, None, tmp_path / "c.jsonl")
    with pytest.raises(UserError, match=r"--model"):
        make_engine(options, None, byte_wire())


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_actor_of_ray_tells_of_a_dead_engine_in_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
):
    def fail(_: Sequence[Request]) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr("data_prep.synthesis.schedule.MOST_FAILURES_IN_A_ROW", 3)
    monkeypatch.setattr("data_prep.synthesis.executors.make_engine", lambda *_: ScriptedEngine(batch_size, before=fail))
    write_jsonl(tmp_path / "in.jsonl", [{"id": f"d{i}", "text": f"Text t{i} says little."} for i in range(9)])
    work = begin(tmp_path / "work", [tmp_path / "in.jsonl"], settings(), {})
    actor = ShardActor(Job(work.root, settings(), None))
    asyncio.run(actor.ready())
    with pytest.raises(UserError, match=r"it failed on 3 texts in a row \(ConnectionError: gone\)"):
        asyncio.run(actor.work_off(0))


def test_two_runs_at_once_do_not_work_on_one_shard(tmp_path: Path, corpus: Path, whole: dict[str, bytes]):
    out = tmp_path / "c.jsonl"
    told: list[str] = []

    class Meets(ScriptedEngine):
        async def generate(self, requests: Sequence[Request]) -> list[Completion]:
            if not told:
                with pytest.raises(UserError, match=r"00000\.jsonl: another process is at work on this shard") as met:
                    await Worker(work, settings(), ScriptedEngine(), prompter).shard(0, asyncio.Semaphore(1))
                told.append(str(met.value))
            return await super().generate(requests)

    prompter = make_prompter(settings(), None)
    work = begin(Path(f"{out}.work"), [corpus], settings(), identity_of([corpus], settings(), "bytes", None))
    synthesize(settings(), corpus, None, out, engine=Meets())
    assert told
    with pytest.raises(UserError, match=r"c\.jsonl\.work: another process has finished this run"):
        asyncio.run(Worker(work, settings(), ScriptedEngine(), prompter).shard(1, asyncio.Semaphore(1)))
    assert not work.root.exists()


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("poison", ["t0 ", "t4 ", "t0 t1 t2 "])
def test_a_shard_all_of_whose_texts_fail_does_not_end_a_run_whose_engine_works(
    tmp_path: Path, batch_size: int, poison: str
):
    write_jsonl(tmp_path / "in.jsonl", [{"id": f"d{i}", "text": f"Text t{i} says little."} for i in range(5)])

    def fail(requests: Sequence[Request]) -> None:
        if any(request.text.split()[1] in poison.split() for request in requests):
            raise ValueError("too long")

    options = SynthesizeSettings(engine="rules", shard_documents=1)
    summary = synthesize(
        options, tmp_path / "in.jsonl", None, tmp_path / "c", engine=ScriptedEngine(batch_size, before=fail)
    )
    assert summary is not None and summary["failed"] == len(poison.split()) == 5 - summary["texts_with_pairs"]


def test_others_get_their_turn_while_a_long_document_is_cut(tmp_path: Path):
    write_jsonl(tmp_path / "in.jsonl", [{"id": "long", "text": "A sentence is here. " * 2000}])
    options = SynthesizeSettings(engine="rules", max_text_tokens=64)
    work = begin(tmp_path / "work", [tmp_path / "in.jsonl"], options, {})
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def both() -> int:
        counting = asyncio.create_task(count())
        shard = await open_shard(work, 0, options, make_prompter(options, None))
        counting.cancel()
        return shard.counts["texts"]

    assert asyncio.run(both()) <= turns + 1 > 800
