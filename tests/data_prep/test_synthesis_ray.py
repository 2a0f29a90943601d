"""Who gets which shard on a Ray cluster that grows, shrinks, is too small or has sick places: with a stand-in."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ray_standin import RayError, StandIn
from scripted_engine import ScriptedEngine

from data_prep.errors import UserError
from data_prep.readers import write_jsonl
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis import ray_executor
from data_prep.synthesis.executors import Job
from data_prep.synthesis.journal import Journal
from data_prep.synthesis.ray_executor import Cluster, ShardActor
from data_prep.synthesis.work import begin


def run(ray: StandIn, workers: int, shards: int) -> Counter[str]:
    told: Counter[str] = Counter()
    cluster = Cluster(ray, ray.actor, list(range(shards)), workers, told.update)
    try:
        cluster.run()
    finally:
        cluster.close()
        assert all(actor.is_dead for actor in ray.actors)
    return told


def error_of(ray: StandIn, workers: int, shards: int = 10) -> str:
    with pytest.raises(UserError) as met:
        run(ray, workers, shards)
    assert "\n" not in str(met.value) and "Traceback" not in str(met.value)
    return str(met.value)


def fail(error: Exception) -> Any:
    raise error


def test_all_shards_are_done_by_the_actors_that_the_cluster_has_room_for():
    ray = StandIn(room=lambda answers: 2)
    assert run(ray, workers=6, shards=10)["documents"] == 10
    assert sorted(shard for shard, _ in ray.done) == list(range(10))
    assert len(ray.actors) == 6 and ray.most_held == 2


@pytest.mark.parametrize("workers", [5, 6])
def test_no_more_actors_are_asked_for_than_there_are_shards_and_each_gets_one(workers: int):
    ray = StandIn(room=lambda answers: 5)
    run(ray, workers, shards=5)
    assert len(ray.actors) == 5 and {place for _, place in ray.done} == set(range(5))


def test_an_actor_that_comes_up_late_takes_shards_and_one_whose_node_is_lost_leaves_them():
    ray = StandIn(room=lambda answers: 1 if answers < 4 else 3 if answers < 16 else 1)
    run(ray, workers=3, shards=20)
    assert sorted(shard for shard, _ in ray.done) == list(range(20))
    places = [place for _, place in ray.done]
    assert set(places[:3]) == {0} and {1, 2} <= set(places) and set(places[-5:]) == {0}


def test_a_cluster_that_has_no_room_yet_is_waited_for_and_the_user_told(caplog: pytest.LogCaptureFixture):
    ray = StandIn(lambda answers: int(answers >= 2), patience=2)
    run(ray, workers=2, shards=3)
    assert len(ray.done) == 3 and caplog.text.count("no worker is up yet") == 2


@pytest.mark.parametrize(("workers", "sick", "name"), [(3, 1, None), (6, 1, None), (4, 2, "a machine without GPUs")])
@pytest.mark.parametrize("error", [OSError("CUDA error"), UserError("engine", "64 in a row"), RayError("gone")])
def test_sick_places_cost_no_shard_though_they_fail_long_before_the_others_are_done(
    workers: int, sick: int, name: str | None, error: Exception
):
    def seconds(place: int, shard: int | None) -> float:
        return 1.0 if shard is None else 0.0 if place < sick else 100.0

    ray = StandIn(lambda answers: sick + 2, lambda place: name, lambda place, _: place < sick and fail(error), seconds)
    run(ray, workers, shards=10)
    assert sorted(shard for shard, _ in ray.done) == list(range(10))
    assert {place for _, place in ray.done} == {sick, sick + 1}


def test_a_place_where_no_engine_can_be_made_is_given_up_while_others_work():
    def seconds(place: int, shard: int | None) -> float:
        return 1.0 if place == 0 else 0.0 if shard is None else 2.0

    unmade = UserError("model", "vLLM did not start: CUDA error")
    ray = StandIn(lambda answers: 3, make=lambda place: fail(unmade) if place == 0 else None, seconds=seconds)
    run(ray, workers=3, shards=40)
    assert {place for _, place in ray.done} == {1, 2}
    assert len(ray.actors) == 2 + ray_executor.SHARD_ATTEMPTS


def test_a_shard_that_fails_when_others_have_gone_is_done_by_another():
    tried: list[int] = []

    def work(place: int, shard: int) -> None:
        tried.append(shard)
        if tried.count(1) == 1 and shard == 1:
            raise RayError("gone")

    ray = StandIn(lambda answers: 2, work=work, seconds=lambda place, shard: shard or 0)
    run(ray, workers=2, shards=2)
    assert tried == [0, 1, 1] and len(ray.actors) == 3


def test_a_worker_that_fails_now_and_then_is_not_given_up_but_one_that_fails_always_is():
    left = list(range(10))

    def work(place: int, shard: int) -> None:
        if shard in left:
            left.remove(shard)
            raise RayError("gone")

    ray = StandIn(lambda answers: 1, work=work)
    run(ray, workers=1, shards=10)
    assert len(ray.done) == 10 and not left
    ray = StandIn(lambda answers: 1, lambda place: fail(OSError("CUDA error")) if ray.done else None)
    ray.work = lambda place, shard: fail(OSError("the GPU has fallen off")) if ray.done else None
    assert "every worker failed 3 times in a row (OSError: CUDA error)" in error_of(ray, workers=1)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_shard_that_kills_its_actor_each_time_ends_the_run_in_one_line(workers: int):
    def work(place: int, shard: int) -> None:
        if shard == 4:
            raise RayError("died\n  unexpectedly")

    ray = StandIn(lambda answers: 3, work=work, seconds=lambda place, shard: shard or 0)
    said = error_of(ray, workers)
    mend = "mend the engine and run again; what is done is kept"
    assert said == f"Ray: shard 4 failed on 3 workers (RayError: died unexpectedly); {mend}"


def test_an_engine_that_cannot_be_made_ends_the_run_in_its_own_words():
    ray = StandIn(lambda answers: 4, make=lambda place: fail(UserError("model", "no such\nthing", "give one")))
    assert error_of(ray, workers=4) == "model: no such thing; give one" and ray.answers == 1
    ray = StandIn(lambda answers: 4, make=lambda place: fail(OSError("CUDA\nerror")))
    assert "no worker could be started, 3 failed (OSError: CUDA error)" in error_of(ray, workers=4)
    assert ray.answers == ray_executor.SHARD_ATTEMPTS


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_an_engine_that_answers_nowhere_ends_the_run_in_its_own_words(workers: int):
    verdict = UserError("synthesis engine", "it failed on 64 texts in a row", "mend the engine")
    ray = StandIn(lambda answers: workers, work=lambda place, shard: fail(verdict))
    assert error_of(ray, workers) == str(verdict) and not ray.done


@pytest.mark.parametrize(
    ("values", "held", "asked"),
    [
        ({"engine": "transformers"}, 8, 1),
        ({"engine": "transformers"}, 0, 0),
        ({"engine": "transformers", "gpus_per_worker": 0.25}, 8, 0.25),
        ({"engine": "vllm", "tensor_parallel_size": 4}, 8, 4),
        ({"engine": "rules"}, 8, 0),
    ],
)
def test_a_worker_asks_for_as_many_gpus_as_its_engine_needs(values: dict[str, Any], held: float, asked: float):
    assert ray_executor._gpus(SynthesizeSettings(**values), held) == asked


def test_an_actor_waits_for_the_journal_of_a_shard_that_one_is_letting_go_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray_executor, "POLL_SECONDS", 0.0)
    monkeypatch.setattr("data_prep.synthesis.executors.make_engine", lambda *_: ScriptedEngine())
    write_jsonl(tmp_path / "in.jsonl", [{"id": "d", "text": "Text t says little."}])
    options = SynthesizeSettings(engine="rules")
    work = begin(tmp_path / "work", [tmp_path / "in.jsonl"], options, {})

    async def both() -> Counter[str]:
        actor = ShardActor(Job(work.root, options, None))
        await actor.ready()
        with Journal(work.journal(0), {}):
            task = asyncio.create_task(actor.work_off(0))
            for _ in range(5):
                await asyncio.sleep(0)
        return await task

    assert asyncio.run(both())["documents"] == 1 and work.result(0).exists()
    monkeypatch.setattr(ray_executor, "DEATH_SECONDS", -1.0)
    work.result(0).unlink()
    with Journal(work.journal(0), {}), pytest.raises(UserError, match="another process is at work on this shard"):
        actor = ShardActor(Job(work.root, options, None))
        asyncio.run(actor.ready())
        asyncio.run(actor.work_off(0))
